-- What draws and assertions do: whether an amount fits, and what is held.
local draws_made
draws = function()
  if draws_made then return draws_made end
  local function left(cap, used) return less(cap < 0 and MAX_SUM or cap, used) end

  -- What counts against the limit of a balance's window.
  local function used(field, kind, limits, sums)
    if kind == '2' then return rare().used_in_slices(field) end
    local tokens, money = 0, 0
    if sums then tokens, money = used_of(sums) end
    if limits[CARRIES] == 1 then
      local debt, debt_money = rare().debt_before(field, cap_of(limits, kind))
      return tokens + debt, money + debt_money
    end
    return tokens, money
  end

  local function refusal(field, limits, tokens, money)
    local sums = get(field)
    local moved, moved_money = tokens, money
    if sums then
      moved = moved + sums[HELD] + sums[OVERRUN] + sums[LATE] + sums[CARRIED]
      moved_money = moved_money + sums[HELD + 1] + sums[OVERRUN + 1] + sums[LATE + 1] + sums[CARRIED + 1]
    end
    if tokens > 0 and moved > MAX_SUM or money > 0 and moved_money > MAX_SUM then return {'full', FULL_RETRY_MS} end
    local kind = kind_of(field)
    local cap, cap_money = cap_of(limits, kind)
    if cap < 0 and cap_money < 0 then return nil end
    local spent, spent_money = used(field, kind, limits, sums)
    local unit, retry
    if tokens > 0 and cap >= 0 and spent + tokens > cap then
      unit, retry = 0, rare().retry_after(field, 0, cap, spent + tokens)
    elseif money > 0 and cap_money >= 0 and spent_money + money > cap_money then
      unit, retry = 1, rare().retry_after(field, 1, cap_money, spent_money + money)
    else
      return nil
    end
    return {'spent', retry, account_of(field), kind, unit, left(cap, spent), left(cap_money, spent_money)}
  end

  -- The refusal that stands longest in the way; of equal ones the last.
  local function check(pins, tokens, money)
    if tokens == 0 and money == 0 then return nil end
    fetch(pins)
    local owners, worst = pins.owners, nil
    for i = 1, #pins do
      local limits = owners and get(owners[i]) or limits_of(account_of(pins[i]))
      local denied = refusal(pins[i], limits, tokens, money)
      if denied and (not worst or denied[2] >= worst[2]) then worst = denied end
    end
    return worst
  end

  local function hold_more(hold, held, pins, tokens, money)
    put('H' .. hold, held)
    expiries[hold] = held[EXPIRES]
    if held[EXPIRES] < meta[NEXT_EXPIRY] then meta[NEXT_EXPIRY] = held[EXPIRES] end
    fetch(pins)
    for i = 1, #pins do
      local sums = add(pins[i], HELD, tokens, money)
      sums[OUTSTANDING], sums[OUTSTANDING + 1] = sums[OUTSTANDING] + tokens, sums[OUTSTANDING + 1] + money
    end
  end

  local function insert(hold, tokens, money, ttl, text)
    if meta[LIVE] == 0 then touched[EXPIRIES] = true end
    meta[LIVE] = meta[LIVE] + 1
    hold_more(hold, {tokens, money, ttl, now + ttl + DRIFT, text}, pins_of(text), tokens, money)
  end

  local function extend(hold, held, tokens, money, expires)
    held[1], held[2], held[EXPIRES] = held[1] + tokens, held[2] + money, expires
    hold_more(hold, held, (tokens > 0 or money > 0) and pins_of(held[PINS]) or {}, tokens, money)
  end

  local function granted(hold)
    local held = live(hold)
    return {'granted', held[1], held[2], held[PINS]}
  end

  -- The pins of accounts with these limits, as a text. An account that was learned may have made room for the next.
  local function pinned(path, learned)
    if path.pins then return path.pins end
    local pins, owners = {}, {}
    for i = 1, #path do
      local of, at = path[i], #pins
      pins[at + 1], owners[at + 1] = 'B' .. of.account .. open_day, of.field
      pins[at + 2], owners[at + 2] = 'B' .. of.account .. open_month, of.field
      pins[at + 3], owners[at + 3] = window_open(of.account, '2', learned[i]), of.field
    end
    path.pins, pins.owners = table.concat(pins), owners
    parsed[path.pins] = pins
    return path.pins
  end

  local function reserve(hold, tokens, money, ttl, text)
    if wall >= meta[NEXT_DUE] then rare().close_due() end
    local held = live(hold)
    if held then
      extend(hold, held, 0, 0, now + held[TTL] + DRIFT)
      return granted(hold)
    end
    if ended(hold) then return {'ended'} end
    if tokens > MAX_AMOUNT or money > MAX_AMOUNT then return {'large'} end
    if meta[LIVE] >= LIVE_MAX then return {'full', FULL_RETRY_MS} end
    local path, learned = path_of(text), {}
    for i = 1, #path do
      local of = path[i]
      local known = get(of.field)
      if not known or known[TOLD] ~= of.told then known = rare().learn(of.account, of.told) end
      if not known then return {'full', FULL_RETRY_MS} end
      learned[i] = known
    end
    local pins = pinned(path, learned)
    local denied = check(pins_of(pins), tokens, money)
    if denied then return denied end
    insert(hold, tokens, money, ttl, pins)
    return granted(hold)
  end

  -- `tokens` and `money` is how much it shall hold in all.
  local function extend_to(hold, tokens, money)
    local held = live(hold)
    if not held then return {'ended'} end
    if tokens > MAX_AMOUNT or money > MAX_AMOUNT then return {'large'} end
    local pins = pins_of(held[PINS])
    local more, more_money = less(tokens, held[1]), less(money, held[2])
    local denied = check(pins, more, more_money)
    if denied then return denied end
    extend(hold, held, more, more_money, now + held[TTL] + DRIFT)
    return granted(hold)
  end

  local function assert_held(hold, tokens, money, ttl, text)
    tokens, money = math.min(tokens, MAX_AMOUNT), math.min(money, MAX_AMOUNT)
    local held = live(hold)
    if held then
      extend(hold, held, less(tokens, held[1]), less(money, held[2]), now + ttl + DRIFT)
      return granted(hold)
    end
    if ended(hold) then return {'ended'} end
    if meta[LIVE] >= LIVE_MAX then return {'full', FULL_RETRY_MS} end
    if not rare().room_for(pins_of(text)) then return {'full', FULL_RETRY_MS} end
    insert(hold, tokens, money, ttl, text)
    return granted(hold)
  end

  draws_made = {reserve = reserve, extend = extend_to, assert = assert_held}
  return draws_made
end
