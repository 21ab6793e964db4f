-- Reads the open balances of one tenant, in order: for audits and tests. Changes nothing.
-- KEYS  as in every script  ARGV  1 after which balance, "" for the first  2 how many  3.. these alone, where there are any
local keys = {unpack(ARGV, 3)}
if #keys == 0 then
  local after = ARGV[1] == '' and '-' or '(' .. ARGV[1]
  keys = redis.call('ZRANGEBYLEX', KEYS[6], after, '+', 'LIMIT', 0, tonumber(ARGV[2]))
end
local found = {}
for i = 1, #keys do
  local packed = redis.call('HGET', KEYS[1], 'B' .. keys[i])
  if packed then
    local row = {keys[i], struct.unpack('<dddddddddddddddddddd', packed)}
    row[22] = nil
    found[#found + 1] = row
  end
end
return found
