-- ARGV  10 hold  11 tokens  12 money  13 the run that confirmed it, "" for none  14.. the balances it counts in
local function settle(hold, tokens, money, pins)
  tokens, money = min(tokens, MAX_AMOUNT), min(money, MAX_AMOUNT)
  local known = ended(hold)
  if not known and not get('L' .. hold) then
    if ARGV[13] == run then return {'ended'} end
    return late(hold, pins, tokens, money)
  end
  if known and known[1] == 'refunded' then return late(hold, pins, tokens, money) end
  if finish(hold, 'settled', tokens, money) then return {'done'} end
  if known[1] == 'expired' then return late(hold, known[2], tokens, money) end
  return {'done'}
end

local pins = {}
for at = 14, #ARGV do pins[#pins + 1] = ARGV[at] end
begin(ARGV[10], {})
return answer(settle(ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[12]), pins))
