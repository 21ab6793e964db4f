-- Whose turn it is. KEYS[1]: {session:<id>}:turn. ARGV: who holds it, and for how many milliseconds more; 0 lets go.
-- Returns 1 where he held it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
