-- A reader elsewhere is still there. KEYS[1]: chat:req:meta:<id>. ARGV: its epoch, the last event it read, milliseconds to
-- live. Returns 1; 0 where another took over; -1 where the stream is gone. A server that lost its claim learns its epoch again.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  return -1
end
if tonumber(epoch) > tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'reader', ARGV[1], 'read', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'beat', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
