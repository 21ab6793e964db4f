-- Where a session is. KEYS  1 session_affinity:<id>  2 {session_affinity:<id>}:epoch. Says the home, if there is one, and the epoch.
local epoch = redis.call('GET', KEYS[2]) or '0'
if not epoch:match('^%d+$') then return redis.error_reply('FOREIGN what is no epoch of a session') end
return {redis.call('GET', KEYS[1]), tonumber(epoch)}
