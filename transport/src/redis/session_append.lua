-- The messages of a turn, at the end of a list: all of them, once. KEYS[1]: session_messages:<id>. ARGV: the entries,
-- which name their turn, so that a turn whose answer was lost on the way is told from the next.
-- Returns how many messages there are.
if not redis.call('LPOS', KEYS[1], ARGV[#ARGV], 'RANK', -1, 'MAXLEN', 256) then
  for from = 1, #ARGV, 1000 do
    redis.call('RPUSH', KEYS[1], unpack(ARGV, from, math.min(from + 999, #ARGV)))
  end
end
return redis.call('LLEN', KEYS[1])
