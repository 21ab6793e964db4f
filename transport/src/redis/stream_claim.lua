-- A reader takes a stream over. KEYS[1]: chat:req:meta:<id>. ARGV: whose, the last event it has where it reads elsewhere, and
-- the epoch that it comes after whatever stands here. Returns its epoch and the stream's owner; nothing where there is no such
-- stream of theirs.
local said = redis.call('HMGET', KEYS[1], 'whose', 'owner', 'epoch')
if not said[1] or said[1] ~= ARGV[1] then
  return false
end
local epoch = math.max(tonumber(said[3] or 0), tonumber(ARGV[3])) + 1
redis.call('HSET', KEYS[1], 'epoch', epoch)
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 'reader', epoch, 'read', ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'beat', 1)
end
return { epoch, said[2] or '' }
