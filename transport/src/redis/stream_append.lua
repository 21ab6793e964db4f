-- Writes events of one stream. KEYS[1]: stream:chat:<id>. ARGV: the most entries, milliseconds to live, the number of the
-- first event that the writer keeps, the number of the first it sends, then event, token, is_final and finish_reason of each.
-- A number that is there already stays as it is: what was asked before and never answered is asked again. Where events are
-- missing that the writer has (a server may lose what it acknowledged), nothing is written: it begins behind what is there.
-- Returns the number of the last event.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local have = last and tonumber(string.match(last[1], '^%d+')) or 0
local kept, seq = tonumber(ARGV[3]), tonumber(ARGV[4])
if have < seq - 1 and kept < seq then
  return have
end
for at = 5, #ARGV, 4 do
  if seq > have then
    redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[1], string.format('%.0f-0', seq), 'token', ARGV[at + 1],
      'seq', string.format('%.0f', seq), 'is_final', ARGV[at + 2], 'finish_reason', ARGV[at + 3], 'event', ARGV[at])
  end
  seq = seq + 1
end
if have >= seq then
  return redis.error_reply('FOREIGN events that nobody here wrote')
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return seq - 1
