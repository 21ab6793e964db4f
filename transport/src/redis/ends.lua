-- What ends do.
local ends_made
ends = function()
  if ends_made then return ends_made end
  local function remember(hold, how, text)
    if ended(hold) then return end
    put('H' .. hold, {how, text, now})
    remembered[#remembered + 1] = format('%016.0f', now) .. hold
    meta[ENDED] = meta[ENDED] + 1
    if now - REMEMBER > meta[HORIZON] then meta[HORIZON] = now - REMEMBER end
    if now < meta[OLDEST] then meta[OLDEST] = now end
    if meta[ENDED] > REMEMBERED_MAX or meta[OLDEST] < meta[HORIZON] then rare().forget_some() end
  end

  -- One unit of one balance: what a terminal entry does to it.
  local function end_in(sums, unit, how, total, actual)
    sums[OUTSTANDING + unit] = less(sums[OUTSTANDING + unit], total)
    if how == 'settled' then
      sums[OVERRUN + unit] = sums[OVERRUN + unit] + less(actual, total)
      sums[REFUNDED + unit] = sums[REFUNDED + unit] + less(total, actual)
      sums[CHARGED + unit] = sums[CHARGED + unit] + actual
      sums[SPENT + unit] = sums[SPENT + unit] + actual
    elseif how == 'refunded' then
      sums[REFUNDED + unit] = sums[REFUNDED + unit] + total
    else
      sums[EXPIRED + unit] = sums[EXPIRED + unit] + total
    end
  end

  local function finish(hold, how, tokens, money)
    local held = live(hold)
    if not held then return false end
    local pins, over = pins_of(held[PINS]), nil
    fetch(pins)
    put('H' .. hold, false)
    expiries[hold] = false
    meta[LIVE] = meta[LIVE] - 1
    for i = 1, #pins do
      local field = pins[i]
      local window = sub(field, 18)
      if window ~= open_day and window ~= open_month and rare().is_over(field) then
        over = over or {}
        over[#over + 1] = field
      end
      local sums = add(field, HELD, 0, 0)
      end_in(sums, 0, how, held[1], tokens)
      if held[2] > 0 or how == 'settled' and money > 0 then end_in(sums, 1, how, held[2], money) end
    end
    remember(hold, how, how == 'expired' and held[PINS] or '')
    if over then
      for i = 1, #over do rare().close(over[i]) end
    end
    return true
  end

  local function settle(hold, confirmed, tokens, money, text)
    tokens, money = math.min(tokens, MAX_AMOUNT), math.min(money, MAX_AMOUNT)
    if finish(hold, 'settled', tokens, money) then return {'done'} end
    local known = ended(hold)
    if not known then
      if confirmed == run then return {'ended'} end
      return rare().late(hold, text, tokens, money)
    end
    if known[HOW] == 'refunded' then return rare().late(hold, text, tokens, money) end
    if known[HOW] == 'expired' then return rare().late(hold, known[LATE_PINS], tokens, money) end
    return {'done'}
  end

  local function refund(hold)
    if not finish(hold, 'refunded', 0, 0) then remember(hold, 'refunded', '') end
    return {'done'}
  end

  ends_made = {settle = settle, refund = refund, finish = finish, remember = remember}
  return ends_made
end
