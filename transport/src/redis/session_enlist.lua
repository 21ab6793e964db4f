-- A session among its user's, where he may have one more. KEYS[1]: user_sessions:<user>. ARGV: the session, when it was last
-- used, and how many there may be. Returns 0 where there are as many.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
  return 0
end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
return 1
