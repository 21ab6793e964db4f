-- What few calls do: windows that open and close, accounts that come and go, ends that are forgotten, holds that expire, and
-- what a window counts beside its own sums.
local rare_made
rare = function()
  if rare_made then return rare_made end
  local made = {}
  rare_made = made
  -- What the index lists, until it changes.
  local listed = {}

  local function number_of(field) return tonumber(sub(field, 19, 34)) end
  local function until_of(field) return tonumber(sub(field, 35, 50)) end
  local function excess(cap, used) return cap < 0 and 0 or less(used, cap) end

  local function next_month()
    local next = day + 1
    while month_of(next) == month do next = next + 1 end
    return next * DAY_MS
  end

  local function is_over(field)
    local kind = kind_of(field)
    if kind == '0' then return number_of(field) < day end
    if kind == '1' then return number_of(field) < month end
    return until_of(field) <= wall
  end
  made.is_over = is_over

  local function window_end(field)
    local kind = kind_of(field)
    if kind == '0' then return (number_of(field) + 1) * DAY_MS end
    if kind == '1' then return number_of(field) >= month and next_month() or wall end
    return until_of(field)
  end

  -- Accounts.
  local function room(account)
    if get('A' .. account) or meta[ACCOUNTS] < ACCOUNTS_MAX then return true end
    local idle = call('ZRANGE', IDLE, 0, 0)[1]
    if not idle then return false end
    call('ZREM', IDLE, idle)
    put('A' .. idle, false)
    meta[ACCOUNTS] = meta[ACCOUNTS] - 1
    return true
  end

  function made.room_for(pins)
    for i = 1, #pins do
      if not room(account_of(pins[i])) then return false end
    end
    return true
  end

  local function idles(account)
    call('ZADD', IDLE, 0, account)
    touched[IDLE] = true
  end

  -- Limits that are other than those known. Nothing where there is no room.
  function made.learn(account, told)
    if not room(account) then return nil end
    local known, limits = get('A' .. account), {}
    for word in gmatch(told, '%S+') do limits[#limits + 1] = tonumber(word) end
    if not known then
      idles(account)
      meta[ACCOUNTS] = meta[ACCOUNTS] + 1
    end
    limits[BALANCES], limits[TOLD] = known and known[BALANCES] or 0, told
    if limits[SPAN] > meta[LONGEST] then meta[LONGEST], meta[RENEWED] = limits[SPAN], 0 end
    put('A' .. account, limits)
    return limits
  end

  -- Balances.
  local function balance(field)
    local sums = get(field)
    if sums then return sums end
    local due, account, key = window_end(field), account_of(field), sub(field, 2)
    sums = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, due}
    call('ZADD', DUE, due, key)
    call('ZADD', INDEX, 0, key)
    call('ZREM', IDLE, account)
    touched[DUE], touched[INDEX], listed = true, true, {}
    if due < meta[NEXT_DUE] then meta[NEXT_DUE] = due end
    if not get('A' .. account) then meta[ACCOUNTS] = meta[ACCOUNTS] + 1 end
    local known = limits_of(account)
    known[BALANCES] = known[BALANCES] + 1
    put('A' .. account, known)
    put(field, sums)
    return sums
  end
  made.balance = balance

  -- Closes a window that is over and in which nothing is outstanding. False if it must stay.
  local function close(field)
    if not is_over(field) then return false end
    local sums = get(field)
    if not sums then return true end
    if sums[OUTSTANDING] ~= 0 or sums[OUTSTANDING + 1] ~= 0 then return false end
    local account, kind = account_of(field), kind_of(field)
    local limits = limits_of(account)
    local tokens, money = 0, 0
    if kind ~= '2' then
      local cap, cap_money = cap_of(limits, kind)
      tokens = excess(cap, sums[SPENT] + sums[CARRIED])
      money = excess(cap_money, sums[SPENT + 1] + sums[CARRIED + 1])
    end
    call('ZREM', DUE, sub(field, 2))
    call('ZREM', INDEX, sub(field, 2))
    listed = {}
    put(field, false)
    if (tokens > 0 or money > 0) and limits[CARRIES] == 1 then
      add(window_open(account, kind, limits), CARRIED, tokens, money)
    end
    local known = get('A' .. account)
    if known then
      known[BALANCES] = math.max(0, known[BALANCES] - 1)
      put('A' .. account, known)
      if known[BALANCES] == 0 then idles(account) end
    end
    return true
  end
  made.close = close

  -- The lowest score of a sorted set.
  local function first_of(key)
    return tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or NEVER)
  end

  function made.close_due()
    for _ = 1, SWEEP_PER_DRAW do
      local key = call('ZRANGEBYSCORE', DUE, '-inf', wall, 'LIMIT', 0, 1)[1]
      if not key then
        meta[NEXT_DUE] = first_of(DUE)
        return
      end
      local field = 'B' .. key
      if not close(field) then
        local sums = get(field)
        if sums then
          sums[WHEN_DUE] = wall + SWEEP_AGAIN_MS
          put(field, sums)
          call('ZADD', DUE, sums[WHEN_DUE], key)
        else
          call('ZREM', DUE, key)
        end
      end
    end
  end

  -- Ends.
  local function oldest()
    if #first == 0 then
      write_ends()
      first = call('LRANGE', ENDS, 0, together - 1)
      local fields = {}
      for i = 1, #first do fields[i] = 'H' .. sub(first[i], 17) end
      fetch(fields)
      first.at = 1
    end
    return first[first.at]
  end

  function made.forget_some()
    while forgetting > 0 do
      local end_of = oldest()
      if not end_of then
        meta[OLDEST], meta[ENDED] = NEVER, 0
        return
      end
      local since, hold = tonumber(sub(end_of, 1, 16)), sub(end_of, 17)
      meta[OLDEST] = since
      if meta[ENDED] <= REMEMBERED_MAX and since >= meta[HORIZON] then return end
      forgetting, gone, meta[ENDED] = forgetting - 1, gone + 1, meta[ENDED] - 1
      first.at = first.at + 1
      if first.at > #first then first = {} end
      local known = get('H' .. hold)
      if known and known[SINCE] == since and not known[PINS] then put('H' .. hold, false) end
    end
  end

  function made.late(hold, text, tokens, money)
    local pins, open = pins_of(text), {}
    fetch(pins)
    for i = 1, #pins do
      local field, account = pins[i], account_of(pins[i])
      if not get(field) then field = window_open(account, kind_of(field), limits_of(account)) end
      open[#open + 1] = field
    end
    if not made.room_for(open) then return {'full', 0} end
    for i = 1, #open do
      local sums = add(open[i], LATE, tokens, money)
      sums[SPENT], sums[SPENT + 1] = sums[SPENT] + tokens, sums[SPENT + 1] + money
    end
    local known = ended(hold)
    if known then
      put('H' .. hold, {'late', '', known[SINCE]})
    else
      ends().remember(hold, 'late', '')
    end
    return {'done'}
  end

  -- What is due, at most so much per call; and the hold that is asked about, whatever the backlog.
  function made.expire(hold)
    write_expiries()
    if expiring > 0 then
      local due = call('ZRANGEBYSCORE', EXPIRIES, '-inf', now, 'LIMIT', 0, expiring)
      expiring = expiring - #due
      for i = 1, #due do
        if not ends().finish(due[i], 'expired', 0, 0) then expiries[due[i]] = false end
      end
    end
    local held = live(hold)
    if held and held[EXPIRES] <= now then ends().finish(hold, 'expired', 0, 0) end
    write_expiries()
    meta[NEXT_EXPIRY] = first_of(EXPIRIES)
  end

  -- Windows of the kind of this one's account, the earlier ones or, of rolling ones, all.
  local function list(field, last)
    local from = sub(field, 2, 18)
    local found = listed[from .. last]
    if not found then
      found = call('ZRANGEBYLEX', INDEX, '[' .. from, '(' .. last)
      for i = 1, #found do found[i] = 'B' .. found[i] end
      listed[from .. last] = found
    end
    fetch(found)
    return found
  end

  local function slices_of(field)
    local slices = {}
    local found = list(field, account_of(field) .. '3')
    for i = 1, #found do
      if until_of(found[i]) > wall then slices[#slices + 1] = found[i] end
    end
    return slices
  end

  function made.used_in_slices(field)
    local tokens, money, slices = 0, 0, slices_of(field)
    for i = 1, #slices do
      local more, more_money = used_of(get(slices[i]))
      tokens, money = tokens + more, money + more_money
    end
    return tokens, money
  end

  function made.debt_before(field, cap, cap_money)
    local tokens, money, earlier = 0, 0, list(field, sub(field, 2))
    for i = 1, #earlier do
      local more, more_money = used_of(get(earlier[i]))
      tokens, money = tokens + excess(cap, more), money + excess(cap_money, more_money)
    end
    return tokens, money
  end

  function made.retry_after(field, unit, cap, total)
    local kind = kind_of(field)
    if kind == '0' then return (day + 1) * DAY_MS - wall end
    if kind == '1' then return next_month() - wall end
    local over, leaves, slices = less(total, cap), wall, slices_of(field)
    for i = 1, #slices do
      if over == 0 then break end
      local tokens, money = used_of(get(slices[i]))
      over = less(over, unit == 0 and tokens or money)
      leaves = until_of(slices[i])
    end
    return leaves - wall
  end

  return made
end
