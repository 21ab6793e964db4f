-- A user's tokens of a day. KEYS[1]: token:<user>:<yyyy-mm-dd>. ARGV: how many more, and how many seconds a new one lives.
-- What is no number of ours stays as it is: INCRBY refuses it, and nothing else is done then.
redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('TTL', KEYS[1]) < 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return 1
