-- ARGV  10 hold  11 tokens  12 money  13 ttl  14.. the balances it counts in
local function assert_held(hold, tokens, money, ttl, pins)
  tokens, money = min(tokens, MAX_AMOUNT), min(money, MAX_AMOUNT)
  local held = get('L' .. hold)
  if held then
    extend(hold, held, less(tokens, held[1]), less(money, held[2]), now + ttl + DRIFT)
    return granted(hold)
  end
  if ended(hold) then return {'ended'} end
  if meta[LIVE] >= LIVE_MAX then return FULL end
  if not room_for(pins) then return FULL end
  insert(hold, tokens, money, ttl, pins)
  return granted(hold)
end

local pins = {}
for at = 14, #ARGV do pins[#pins + 1] = ARGV[at] end
begin(ARGV[10], {})
return answer(assert_held(ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), pins))
