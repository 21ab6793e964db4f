-- The messages of a turn, at the end of a list: all of them, once. KEYS[1]: session_messages:<id>. ARGV: how many messages
-- there were when they were numbered, then the entries, which name their turn, so that a turn whose answer was lost on the
-- way is told from the next.
-- Returns nothing where they are there. Where others came first, nothing is written, and it returns how many there are.
if redis.call('LPOS', KEYS[1], ARGV[#ARGV], 'RANK', -1, 'MAXLEN', 256) then
  return false
end
local length = redis.call('LLEN', KEYS[1])
if length ~= tonumber(ARGV[1]) then
  return length
end
for from = 2, #ARGV, 1000 do
  redis.call('RPUSH', KEYS[1], unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
return false
