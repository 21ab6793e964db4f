-- The gateway that runs a stream's attempt says so, and hears of readers. KEYS[1]: chat:req:meta:<id>. ARGV: owner, whose,
-- status, milliseconds to live, the epoch of the last reader it knows of: while nobody could be asked here it gave out epochs
-- itself. Returns epoch, beats and last event read of the readers elsewhere.
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'whose', ARGV[2], 'status', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
local said = redis.call('HMGET', KEYS[1], 'reader', 'beat', 'read', 'epoch')
if tonumber(said[4] or 0) < tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[5])
end
return { tonumber(said[1] or 0), tonumber(said[2] or 0), tonumber(said[3] or 0) }
