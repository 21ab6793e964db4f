-- A reader elsewhere is still there. KEYS[1]: chat:req:meta:<id>. ARGV: its epoch, the last event it read. Returns 1; 0 where
-- another took over; -1 where the stream is gone.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  return -1
end
if epoch ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'reader', epoch, 'read', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'beat', 1)
return 1
