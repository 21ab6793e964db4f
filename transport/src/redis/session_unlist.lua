-- Takes out of a user's list what is no session and was listed before some time. KEYS[1]: user_sessions:<user>. ARGV: the time, and the
-- ids. Returns how many went.
local gone = 0
for at = 2, #ARGV do
  local listed = redis.call('ZSCORE', KEYS[1], ARGV[at])
  if listed and tonumber(listed) < tonumber(ARGV[1]) then
    gone = gone + redis.call('ZREM', KEYS[1], ARGV[at])
  end
end
return gone
