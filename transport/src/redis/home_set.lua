-- Compare and set of a session's home. KEYS  1 session_affinity:<id>  2 {session_affinity:<id>}:epoch
-- ARGV  1 the epoch that the asker believes in  2 the home, "" for none  3 how long it stays, in milliseconds  4 how long its
--       epoch does
-- Who knows of a later home than this store wins: it may have lost one. The same home again lives on, under the higher epoch. Says what there is now.
local call = redis.call
local text, home = call('GET', KEYS[2]) or '0', call('GET', KEYS[1])
if not text:match('^%d+$') then return redis.error_reply('FOREIGN what is no epoch of a session') end
local epoch, believed = tonumber(text), tonumber(ARGV[1])
if ARGV[2] == '' then
  if epoch <= believed and call('EXISTS', KEYS[2]) == 1 then
    epoch, home = believed, false
    call('DEL', KEYS[1])
    call('SET', KEYS[2], ARGV[1], 'KEEPTTL')
  end
elseif home == ARGV[2] then
  call('PEXPIRE', KEYS[1], ARGV[3])
  if believed > epoch then
    epoch = believed
    call('SET', KEYS[2], ARGV[1], 'PX', ARGV[4])
  else
    call('PEXPIRE', KEYS[2], ARGV[4])
  end
elseif epoch <= believed then
  epoch, home = believed + 1, ARGV[2]
  call('SET', KEYS[1], home, 'PX', ARGV[3])
  call('SET', KEYS[2], string.format('%.0f', epoch), 'PX', ARGV[4])
end
return {home, epoch}
