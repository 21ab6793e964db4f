-- Whether an amount fits, and when it will. For the scripts that draw.
local function rolling_of(account)
  local slices = {}
  local keys = call('ZRANGEBYLEX', INDEX, '[' .. account .. '2', '(' .. account .. '3')
  for i = 1, #keys do
    if until_of(keys[i]) > wall then slices[#slices + 1] = keys[i] end
  end
  fetch_balances(slices)
  return slices
end

-- What counts against the limit of a balance's window.
local function used(key, limits, sums)
  local account, kind = account_of(key), kind_of(key)
  local tokens, money = 0, 0
  if kind == '2' then
    local slices = rolling_of(account)
    for i = 1, #slices do
      local more, more_money = used_of(get('B' .. slices[i]))
      tokens, money = tokens + more, money + more_money
    end
    return tokens, money
  end
  if sums then tokens, money = used_of(sums) end
  if limits[8] == 1 then
    local cap, cap_money = cap_of(limits, kind)
    local earlier = call('ZRANGEBYLEX', INDEX, '[' .. account .. kind, '(' .. key)
    fetch_balances(earlier)
    for i = 1, #earlier do
      local more, more_money = used_of(get('B' .. earlier[i]))
      tokens, money = tokens + excess(cap, more), money + excess(cap_money, more_money)
    end
  end
  return tokens, money
end

local function retry_after(key, unit, cap, total)
  local kind = kind_of(key)
  if kind == '0' then return (day + 1) * DAY_MS - wall end
  if kind == '1' then return next_month() - wall end
  local over, leaves = less(total, cap), wall
  local slices = rolling_of(account_of(key))
  for i = 1, #slices do
    if over == 0 then break end
    local tokens, money = used_of(get('B' .. slices[i]))
    over = less(over, unit == 0 and tokens or money)
    leaves = until_of(slices[i])
  end
  return leaves - wall
end

local function refusal(key, limits, tokens, money)
  local sums = get('B' .. key)
  local moved, moved_money = tokens, money
  if sums then
    moved = moved + sums[HELD] + sums[OVERRUN] + sums[LATE] + sums[CARRIED]
    moved_money = moved_money + sums[HELD + 1] + sums[OVERRUN + 1] + sums[LATE + 1] + sums[CARRIED + 1]
  end
  if tokens > 0 and moved > MAX_SUM or money > 0 and moved_money > MAX_SUM then return FULL end
  local cap, cap_money = cap_of(limits, kind_of(key))
  if cap < 0 and cap_money < 0 then return nil end
  local spent, spent_money = used(key, limits, sums)
  local unit, retry
  if tokens > 0 and cap >= 0 and spent + tokens > cap then
    unit, retry = 0, retry_after(key, 0, cap, spent + tokens)
  elseif money > 0 and cap_money >= 0 and spent_money + money > cap_money then
    unit, retry = 1, retry_after(key, 1, cap_money, spent_money + money)
  else
    return nil
  end
  return {'spent', retry, account_of(key), kind_of(key), unit,
    left(cap, spent), left(cap_money, spent_money)}
end

-- The refusal that stands longest in the way; of equal ones the last.
local function check(pins, tokens, money)
  if tokens == 0 and money == 0 then return nil end
  fetch_balances(pins)
  local worst
  for i = 1, #pins do
    local denied = refusal(pins[i], limits_of(account_of(pins[i])), tokens, money)
    if denied and (not worst or denied[2] >= worst[2]) then worst = denied end
  end
  return worst
end
