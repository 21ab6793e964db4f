-- The ledger of one tenant: its state, the fold, and what every script shares. Prepended to each of them.
--
-- The specification is `control::quota::Ledger`; names and order of steps follow it, so that the two can be read side by
-- side. Times are microseconds, wall time and what is returned as a pause are milliseconds, all below 2^53.
--
-- KEYS  1 book (hash)  2 expiries (zset)  3 ends (list)  4 idle (zset)  5 due (zset)  6 index (zset)
-- ARGV  1 now, "" for the server's own time  2 wall  3 the run the owner believes in, "" for none  4 a fresh token
--       5 drift  6 live_max  7 accounts_max  8 remembered_max  9 remember  10.. the ask
--
-- The book's fields, each packed: "meta"; L<hold> what is live {tokens, money, ttl, expires, pins}; E<hold> what has
-- ended {how, pins, since}; A<account> {8 limits, balances}; B<balance> {10 sums in both units, due}.
local BOOK, EXPIRIES, ENDS, IDLE, DUE, INDEX = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local call, floor, max, min, format = redis.call, math.floor, math.max, math.min, string.format
local pack, unpacked = cmsgpack.pack, cmsgpack.unpack
local DRIFT, LIVE_MAX, ACCOUNTS_MAX = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local REMEMBERED_MAX, REMEMBER = tonumber(ARGV[8]), tonumber(ARGV[9])
local MAX_AMOUNT, MAX_SUM = 68719476736, 4503599627370496
local DAY_MS, SWEEP_AGAIN_MS, FULL_RETRY_MS = 86400000, 60000, 1000
local SWEEP_PER_DRAW, WORK_PER_CALL = 12, 64
-- A tenant nobody asks about is forgotten after so long, and twice its rolling window.
local KEEP_MS = 45 * DAY_MS
local FOREVER = {-1, -1, -1, -1, -1, -1, -1, 0, 0}
local FULL = {'full', FULL_RETRY_MS}
local HELD, OVERRUN, CHARGED, REFUNDED, EXPIRED, OUTSTANDING, LATE, FORGIVEN, SPENT, CARRIED =
  1, 3, 5, 7, 9, 11, 13, 15, 17, 19

-- The places of the meta field. The last four spare every call a look: before NEXT_EXPIRY nothing expires, before NEXT_DUE
-- no window closes, LIVE holds are live, and no end was remembered before OLDEST. They are looked up anew once a day.
local WALL, NOW, ACCOUNTS, HORIZON, TOKEN, RENEWED, LONGEST, NEXT_EXPIRY, NEXT_DUE, LIVE, OLDEST =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
local NEVER = 9007199254740991

-- Fields of the book, read once and written once.
local cache, dirty, touched = {}, {}, {}

local function fetch(fields)
  local ask = {}
  for i = 1, #fields do
    if cache[fields[i]] == nil then
      ask[#ask + 1] = fields[i]
      cache[fields[i]] = false
    end
  end
  if #ask == 0 then return end
  local got = call('HMGET', BOOK, unpack(ask))
  for i = 1, #ask do
    if got[i] then cache[ask[i]] = unpacked(got[i]) end
  end
end

local function get(field)
  if cache[field] == nil then fetch({field}) end
  return cache[field]
end

local function put(field, value)
  cache[field] = value
  dirty[field] = true
end

local function fetch_balances(pins)
  local fields = {}
  for i = 1, #pins do fields[i] = 'B' .. pins[i] end
  fetch(fields)
end

-- Calendar.
local function month_of(day)
  local from_march = day + 719468
  local era, of_era = floor(from_march / 146097), from_march % 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524)
    - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local march = floor((5 * of_year + 2) / 153)
  local month = march < 10 and march + 3 or march - 9
  return (era * 400 + year + (month <= 2 and 1 or 0) - 1970) * 12 + month - 1
end

local meta, now, wall, day, month, run

-- Wall time only counts forward.
local function see(seen)
  if wall and seen <= wall then return end
  wall = seen
  day = floor(wall / DAY_MS)
  month = month_of(day)
  if meta then meta[WALL] = wall end
end

local function next_month()
  local next = day + 1
  while month_of(next) == month do next = next + 1 end
  return next * DAY_MS
end

-- Balances are named by account (16 hex), kind (0 day, 1 month, 2 rolling) and numbers of 16 digits: the order of names
-- is the order of the ledger.
local function account_of(key) return key:sub(1, 16) end
local function kind_of(key) return key:sub(17, 17) end
local function number_of(key) return tonumber(key:sub(18, 33)) end
local function until_of(key) return tonumber(key:sub(34, 49)) end

local function window_open(account, kind, limits)
  if kind == '0' then return account .. format('0%016.0f', day) end
  if kind == '1' then return account .. format('1%016.0f', month) end
  local span = limits[5]
  if span < 0 then return nil end
  local width = max(1, floor((span + 31) / 32))
  local start = floor(wall / width) * width
  return account .. format('2%016.0f%016.0f', start, start + width + span)
end

local function is_over(key)
  local kind = kind_of(key)
  if kind == '0' then return number_of(key) < day end
  if kind == '1' then return number_of(key) < month end
  return until_of(key) <= wall
end

local function window_end(key)
  local kind = kind_of(key)
  if kind == '0' then return (number_of(key) + 1) * DAY_MS end
  if kind == '1' then return number_of(key) >= month and next_month() or wall end
  return until_of(key)
end

-- Caps: tokens and money, -1 where there is none.
local function cap_of(limits, kind)
  if kind == '0' then return limits[1], limits[2] end
  if kind == '1' then return limits[3], limits[4] end
  if limits[5] < 0 then return -1, -1 end
  return limits[6], limits[7]
end

local function less(a, b) return a > b and a - b or 0 end
local function left(cap, used) return less(cap < 0 and MAX_SUM or cap, used) end
local function excess(cap, used) return cap < 0 and 0 or less(used, cap) end
local function add(sums, at, tokens, money)
  sums[at], sums[at + 1] = sums[at] + tokens, sums[at + 1] + money
end

local function used_of(sums)
  return sums[SPENT] + sums[OUTSTANDING] + sums[CARRIED],
    sums[SPENT + 1] + sums[OUTSTANDING + 1] + sums[CARRIED + 1]
end

-- Accounts.
local function limits_of(account) return get('A' .. account) or FOREVER end

local function room(account)
  if get('A' .. account) or meta[ACCOUNTS] < ACCOUNTS_MAX then return true end
  local idle = call('ZRANGE', IDLE, 0, 0)[1]
  if not idle then return false end
  call('ZREM', IDLE, idle)
  put('A' .. idle, false)
  meta[ACCOUNTS] = meta[ACCOUNTS] - 1
  return true
end

local function room_for(pins)
  for i = 1, #pins do
    if not room(account_of(pins[i])) then return false end
  end
  return true
end

local function learn(account, limits)
  local known = get('A' .. account)
  local same = known
  for i = 1, 8 do same = same and known[i] == limits[i] end
  if same then return true end
  if not room(account) then return false end
  if not known then
    call('ZADD', IDLE, 0, account)
    touched[IDLE] = true
    meta[ACCOUNTS] = meta[ACCOUNTS] + 1
  end
  limits[9] = known and known[9] or 0
  if limits[5] > meta[LONGEST] then meta[LONGEST], meta[RENEWED] = limits[5], 0 end
  put('A' .. account, limits)
  return true
end

-- Balances.
local function balance(key)
  local field = 'B' .. key
  local sums = get(field)
  if not sums then
    local due, account = window_end(key), account_of(key)
    sums = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, due}
    call('ZADD', DUE, due, key)
    call('ZADD', INDEX, 0, key)
    call('ZREM', IDLE, account)
    touched[DUE], touched[INDEX] = true, true
    meta[NEXT_DUE] = min(meta[NEXT_DUE], due)
    local known = get('A' .. account)
    if not known then
      known = {unpack(FOREVER)}
      meta[ACCOUNTS] = meta[ACCOUNTS] + 1
    end
    known[9] = known[9] + 1
    put('A' .. account, known)
  end
  put(field, sums)
  return sums
end

-- Closes a window that is over and in which nothing is outstanding. False if it must stay.
local function close(key)
  if not is_over(key) then return false end
  local sums = get('B' .. key)
  if not sums then return true end
  if sums[OUTSTANDING] ~= 0 or sums[OUTSTANDING + 1] ~= 0 then return false end
  local account, kind = account_of(key), kind_of(key)
  local limits = limits_of(account)
  local tokens, money = 0, 0
  if kind ~= '2' then
    local cap, cap_money = cap_of(limits, kind)
    tokens = excess(cap, sums[SPENT] + sums[CARRIED])
    money = excess(cap_money, sums[SPENT + 1] + sums[CARRIED + 1])
  end
  call('ZREM', DUE, key)
  call('ZREM', INDEX, key)
  put('B' .. key, false)
  if (tokens > 0 or money > 0) and limits[8] == 1 then
    add(balance(window_open(account, kind, limits)), CARRIED, tokens, money)
  end
  local known = get('A' .. account)
  if known then
    known[9] = max(0, known[9] - 1)
    put('A' .. account, known)
    if known[9] == 0 then
      call('ZADD', IDLE, 0, account)
      touched[IDLE] = true
    end
  end
  return true
end

-- The lowest score of a sorted set.
local function first_of(key)
  return tonumber(call('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or NEVER)
end

local function close_due(most)
  if wall < meta[NEXT_DUE] then return end
  for _ = 1, most do
    local key = call('ZRANGEBYSCORE', DUE, '-inf', wall, 'LIMIT', 0, 1)[1]
    if not key then
      meta[NEXT_DUE] = first_of(DUE)
      return
    end
    if not close(key) then
      local sums = get('B' .. key)
      if sums then
        sums[21] = wall + SWEEP_AGAIN_MS
        put('B' .. key, sums)
        call('ZADD', DUE, sums[21], key)
      else
        call('ZREM', DUE, key)
      end
    end
  end
end

-- Ends, remembered.
local function ended(hold)
  local known = get('E' .. hold)
  if known and known[3] >= meta[HORIZON] then return known end
  return nil
end

local function forget_some(count)
  for _ = 1, WORK_PER_CALL do
    local oldest = call('LINDEX', ENDS, 0)
    if not oldest then
      meta[OLDEST] = NEVER
      return
    end
    local since, hold = tonumber(oldest:sub(1, 16)), oldest:sub(17)
    meta[OLDEST] = since
    if count <= REMEMBERED_MAX and since >= meta[HORIZON] then return end
    call('LPOP', ENDS)
    count = count - 1
    local known = get('E' .. hold)
    if known and known[3] == since then put('E' .. hold, false) end
  end
end

local function remember(hold, how, pins)
  if ended(hold) then return end
  put('E' .. hold, {how, pins, now})
  local count = call('RPUSH', ENDS, format('%016.0f', now) .. hold)
  if count == 1 then touched[ENDS] = true end
  meta[HORIZON] = max(meta[HORIZON], now - REMEMBER)
  meta[OLDEST] = min(meta[OLDEST], now)
  if count > REMEMBERED_MAX or meta[OLDEST] < meta[HORIZON] then forget_some(count) end
end

-- Holds.
local function insert(hold, tokens, money, ttl, pins)
  fetch_balances(pins)
  for i = 1, #pins do
    local sums = balance(pins[i])
    add(sums, HELD, tokens, money)
    add(sums, OUTSTANDING, tokens, money)
  end
  local expires = now + ttl + DRIFT
  call('ZADD', EXPIRIES, expires, hold)
  if meta[LIVE] == 0 then touched[EXPIRIES] = true end
  meta[LIVE], meta[NEXT_EXPIRY] = meta[LIVE] + 1, min(meta[NEXT_EXPIRY], expires)
  put('L' .. hold, {tokens, money, ttl, expires, pins})
end

local function extend(hold, held, tokens, money, expires)
  held[1], held[2], held[4] = held[1] + tokens, held[2] + money, expires
  put('L' .. hold, held)
  call('ZADD', EXPIRIES, expires, hold)
  meta[NEXT_EXPIRY] = min(meta[NEXT_EXPIRY], expires)
  if tokens == 0 and money == 0 then return end
  local pins = held[5]
  fetch_balances(pins)
  for i = 1, #pins do
    local sums = balance(pins[i])
    add(sums, HELD, tokens, money)
    add(sums, OUTSTANDING, tokens, money)
  end
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
  local held = get('L' .. hold)
  if not held then return false end
  local pins, over = held[5], {}
  fetch_balances(pins)
  put('L' .. hold, false)
  call('ZREM', EXPIRIES, hold)
  meta[LIVE] = meta[LIVE] - 1
  for i = 1, #pins do
    if is_over(pins[i]) then over[#over + 1] = pins[i] end
    local sums = balance(pins[i])
    end_in(sums, 0, how, held[1], tokens)
    end_in(sums, 1, how, held[2], money)
  end
  remember(hold, how, how == 'expired' and pins or {})
  for i = 1, #over do close(over[i]) end
  return true
end

-- What is due, at most so much per call; and the hold that is asked about, whatever the backlog.
local function expire(hold)
  if now < meta[NEXT_EXPIRY] then return end
  local due = call('ZRANGEBYSCORE', EXPIRIES, '-inf', now, 'LIMIT', 0, WORK_PER_CALL)
  for i = 1, #due do
    if not finish(due[i], 'expired') then call('ZREM', EXPIRIES, due[i]) end
  end
  local held = get('L' .. hold)
  if held and held[4] <= now then finish(hold, 'expired') end
  meta[NEXT_EXPIRY] = first_of(EXPIRIES)
end

local function late(hold, pins, tokens, money)
  local open = {}
  fetch_balances(pins)
  for i = 1, #pins do
    local key, account = pins[i], account_of(pins[i])
    if not get('B' .. key) then key = window_open(account, kind_of(key), limits_of(account)) end
    open[#open + 1] = key
  end
  if not room_for(open) then return {'full', 0} end
  for i = 1, #open do
    local sums = balance(open[i])
    add(sums, LATE, tokens, money)
    add(sums, SPENT, tokens, money)
  end
  local known = ended(hold)
  if known then
    put('E' .. hold, {'late', {}, known[3]})
  else
    remember(hold, 'late', {})
  end
  return {'done'}
end

-- Begins: the time, the book, the run.
local function begin(hold, fields)
  local stamp = ARGV[1]
  local seen
  if stamp == '' then
    local time = call('TIME')
    now = tonumber(time[1]) * 1000000 + tonumber(time[2])
    seen = floor(now / 1000)
  else
    now, seen = tonumber(stamp), tonumber(ARGV[2])
  end
  fields[#fields + 1], fields[#fields + 2], fields[#fields + 3] = 'meta', 'L' .. hold, 'E' .. hold
  fetch(fields)
  local known = cache['meta'] or {0, 0, 0, 0, ARGV[4], 0, 0, NEVER, NEVER, 0, NEVER}
  now = max(now, known[NOW])
  see(known[WALL])
  meta = known
  see(seen)
  meta[NOW] = now
  put('meta', meta)
  local replication = call('INFO', 'replication')
  run = (replication:match('master_replid:(%w+)') or 'none') .. '.' .. meta[TOKEN]
  expire(hold)
end

-- Writes what changed, lets the keys live on, and answers.
local function answer(reply)
  local keep = KEEP_MS + 2 * meta[LONGEST]
  if now - meta[RENEWED] > DAY_MS * 1000 then
    meta[RENEWED], meta[LIVE] = now, call('ZCARD', EXPIRIES)
    meta[NEXT_EXPIRY], meta[NEXT_DUE], meta[OLDEST] = 0, 0, 0
    touched = {[BOOK] = true, [EXPIRIES] = true, [ENDS] = true, [IDLE] = true, [DUE] = true, [INDEX] = true}
  end
  local set, drop = {}, {}
  for field in pairs(dirty) do
    if cache[field] then
      set[#set + 1], set[#set + 2] = field, pack(cache[field])
    else
      drop[#drop + 1] = field
    end
  end
  if #drop > 0 then call('HDEL', BOOK, unpack(drop)) end
  call('HSET', BOOK, unpack(set))
  for key in pairs(touched) do call('PEXPIRE', key, keep) end
  table.insert(reply, 1, run)
  return reply
end

local function granted(hold)
  local held = get('L' .. hold)
  return {'granted', held[1], held[2], unpack(held[5])}
end
