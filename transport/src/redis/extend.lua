-- ARGV  10 hold  11 tokens  12 money: how much it shall hold in all
local function extend_to(hold, tokens, money)
  local held = get('L' .. hold)
  if not held then return {'ended'} end
  if tokens > MAX_AMOUNT or money > MAX_AMOUNT then return {'large'} end
  local more, more_money = less(tokens, held[1]), less(money, held[2])
  local denied = check(held[5], more, more_money)
  if denied then return denied end
  extend(hold, held, more, more_money, now + held[3] + DRIFT)
  return granted(hold)
end

begin(ARGV[10], {})
if ARGV[3] ~= '' and ARGV[3] ~= run then return answer({'other'}) end
return answer(extend_to(ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[12])))
