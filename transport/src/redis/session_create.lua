-- A new session. KEYS[1]: session:<id>. ARGV: fields and values. What is there already stays as it is.
-- Returns 1 where it is new.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
