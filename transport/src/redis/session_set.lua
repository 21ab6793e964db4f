-- Fields of a session that is there. KEYS[1]: session:<id>. ARGV: fields and values. Returns 0 where it is not.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
