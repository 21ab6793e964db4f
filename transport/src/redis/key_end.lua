-- ARGV  4 how long it is remembered as done, in microseconds; "" where it was not charged
-- The request is over. Charged, it is done, whoever claims its key by now; else the key is free, unless somebody else has it.
if is_foreign then return redis.error_reply(FOREIGN) end
if state == 'done' then return 0 end
if ARGV[4] ~= '' then
  write('done', tonumber(ARGV[4]))
elseif state and by == BY then
  call('DEL', KEY)
end
return 1
