-- ARGV  10 hold  11 ttl  12 tokens  13 money  14.. of each account: id, day (tokens, money), month (tokens, money), rolling
--       (span or -1, tokens, money), 1 where debt is carried
local function reserve(hold, ttl, tokens, money)
  close_due(SWEEP_PER_DRAW)
  if get('L' .. hold) then return granted(hold) end
  if ended(hold) then return {'ended'} end
  if tokens > MAX_AMOUNT or money > MAX_AMOUNT then return {'large'} end
  if meta[LIVE] >= LIVE_MAX then return FULL end
  local accounts = {}
  for at = 14, #ARGV, 9 do
    local limits = {}
    for i = 1, 8 do limits[i] = tonumber(ARGV[at + i]) end
    if not learn(ARGV[at], limits) then return FULL end
    accounts[#accounts + 1] = {ARGV[at], limits}
  end
  local pins = {}
  for i = 1, #accounts do
    for _, kind in ipairs({'0', '1', '2'}) do
      pins[#pins + 1] = window_open(accounts[i][1], kind, accounts[i][2])
    end
  end
  local denied = check(pins, tokens, money)
  if denied then return denied end
  insert(hold, tokens, money, ttl, pins)
  return granted(hold)
end

local hold, fields = ARGV[10], {}
for at = 14, #ARGV, 9 do fields[#fields + 1] = 'A' .. ARGV[at] end
begin(hold, fields)
if ARGV[3] ~= '' and ARGV[3] ~= run then return answer({'other'}) end
return answer(reserve(hold, tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])))
