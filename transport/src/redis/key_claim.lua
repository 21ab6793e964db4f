-- ARGV  4 the lease, in microseconds
-- Says what the request with this key is: begun, running, done or mismatch. Who asks again has still begun.
if is_foreign then return redis.error_reply(FOREIGN) end
if state and body ~= BODY then return 'mismatch' end
if state and not (state == 'running' and by == BY) then return state end
write('running', tonumber(ARGV[4]))
return 'begun'
