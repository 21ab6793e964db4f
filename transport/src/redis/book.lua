-- The ledger of one tenant: its state, the fold, and what all asks share.
--
-- The specification is `control::quota::Ledger`; names and order of steps follow it, so that the two can be read side by
-- side. One call performs several asks, and answers as that ledger does which performs them one after the other, all at one
-- time: what they have in common is read once and written once. Times are microseconds, wall time and what is returned as
-- a pause are milliseconds, all below 2^53.
--
-- KEYS  1 book (hash)  2 expiries (zset)  3 ends (list)  4 idle (zset)  5 due (zset)  6 index (zset)
-- ARGV  1 now, "" for the server's own time  2 wall  3 a fresh token  4 drift  5 live_max  6 accounts_max  7 remembered_max
--       8 remember  9.. the asks, WORDS each: its name; the hold; the run that the owner believes in or, of a settlement, the
--       one that confirmed the hold, "" for none; tokens; money; ttl; where it counts. That is, of a reservation, for each
--       account "A", its id and, each behind a space, its limits: day (tokens, money), month (tokens, money), rolling (span
--       or -1, tokens, money), 1 where debt is carried. Of other asks it is the pins.
--
-- The book's fields, each packed: "meta"; H<hold>, while it is live {tokens, money, ttl, expires, pins}, once it has
-- ended {how, pins, since}; A<account> {8 limits, balances, the limits as they were told}; B<balance> {10 sums in both
-- units, due}. Pins are the fields of balances, one behind the other in one text.
--
-- Constants are written as Lua 5.4 has them, and put in where they are named before this is sent: with 5.1 each function
-- would have to catch each of them in each call. Of the functions, those of draws, of ends and of what is rare are made when a
-- call needs them.
local BOOK, EXPIRIES, ENDS, IDLE, DUE, INDEX = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local DRIFT, LIVE_MAX, ACCOUNTS_MAX = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local REMEMBERED_MAX, REMEMBER = tonumber(ARGV[7]), tonumber(ARGV[8])
local FIRST <const>, WORDS <const> = 9, 7
local MAX_AMOUNT <const>, MAX_SUM <const> = 68719476736, 4503599627370496
local DAY_MS <const>, DAY <const> = 86400000, 86400000000
local SWEEP_AGAIN_MS <const>, FULL_RETRY_MS <const> = 60000, 1000
local SWEEP_PER_DRAW <const>, WORK_PER_CALL <const> = 12, 64
-- A tenant nobody asks about is forgotten after so long, and twice its rolling window.
local KEEP_MS <const> = 3888000000
local NEVER <const> = 9007199254740991

-- The places of sums.
local HELD <const>, OVERRUN <const>, CHARGED <const>, REFUNDED <const>, EXPIRED <const> = 1, 3, 5, 7, 9
local OUTSTANDING <const>, LATE <const>, SPENT <const>, CARRIED <const>, WHEN_DUE <const> = 11, 13, 17, 19, 21
local SUMS <const> = '<ddddddddddddddddddddd'
-- Of an account.
local SPAN <const>, CARRIES <const>, BALANCES <const>, TOLD <const> = 5, 8, 9, 10
-- Of a hold.
local TTL <const>, EXPIRES <const>, PINS <const> = 3, 4, 5
local HOW <const>, LATE_PINS <const>, SINCE <const> = 1, 2, 3
-- Of the meta field. The last five spare every call a look: before NEXT_EXPIRY nothing expires, before NEXT_DUE no window
-- closes, LIVE holds are live, no end was remembered before OLDEST, and ENDED are. They are looked up anew once a day.
local WALL <const>, NOW <const>, ACCOUNTS <const>, HORIZON <const>, TOKEN <const>, RENEWED <const> = 1, 2, 3, 4, 5, 6
local LONGEST <const>, NEXT_EXPIRY <const>, NEXT_DUE <const>, LIVE <const>, OLDEST <const>, ENDED <const> = 7, 8, 9, 10, 11, 12

local call, floor, format, sub, gmatch = redis.call, math.floor, string.format, string.sub, string.gmatch
local meta, now, wall, day, month, run, open_day, open_month
-- How much may yet be worked off of what has piled up.
local expiring, forgetting = WORK_PER_CALL, WORK_PER_CALL
-- Fields of the book, read once and written once; texts that were taken apart; keys that may be new.
local cache, dirty, parsed, touched = {}, {}, {}, {}
-- What changes in the expiries: when a hold expires, or false. What comes to the ends, their first ones, how many of these
-- are gone, and how many are looked at together.
local expiries, remembered, first, gone, together = {}, {}, {}, 0, 2
local rare, draws, ends

local function fetch(fields)
  local ask = {}
  for i = 1, #fields do
    local field = fields[i]
    if cache[field] == nil then
      ask[#ask + 1] = field
      cache[field] = false
    end
  end
  if #ask == 0 then return end
  local got = call('HMGET', BOOK, unpack(ask))
  for i = 1, #ask do
    local packed = got[i]
    if packed then
      local field = ask[i]
      if sub(field, 1, 1) == 'B' then
        cache[field] = {struct.unpack(SUMS, packed)}
      else
        cache[field] = cmsgpack.unpack(packed)
      end
    end
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

-- Some commands take many words: this many at a time.
local function all(command, key, words)
  local most = 2000
  for at = 1, #words, most do call(command, key, unpack(words, at, math.min(at + most - 1, #words))) end
end

-- Balances are named by "B", account (16 hex), kind (0 day, 1 month, 2 rolling) and numbers of 16 digits: the order of
-- names is the order of the ledger. In the sorted sets their names are without the "B".
local function account_of(field) return sub(field, 2, 17) end
local function kind_of(field) return sub(field, 18, 18) end
local function limits_of(account) return get('A' .. account) or {-1, -1, -1, -1, -1, -1, -1, 0, 0, ''} end

local function pins_of(text)
  local pins = parsed[text]
  if not pins then
    pins = {}
    for field in gmatch(text, 'B[0-9a-f]+') do pins[#pins + 1] = field end
    parsed[text] = pins
  end
  return pins
end

local function window_open(account, kind, limits)
  if kind == '0' then return 'B' .. account .. open_day end
  if kind == '1' then return 'B' .. account .. open_month end
  local span = limits[SPAN]
  if span < 0 then return nil end
  local width = math.max(1, floor((span + 31) / 32))
  local start = floor(wall / width) * width
  return 'B' .. account .. format('2%016.0f%016.0f', start, start + width + span)
end

local function month_of(at)
  local from_march = at + 719468
  local era, of_era = floor(from_march / 146097), from_march % 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524)
    - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local march = floor((5 * of_year + 2) / 153)
  local of_year_month = march < 10 and march + 3 or march - 9
  return (era * 400 + year + (of_year_month <= 2 and 1 or 0) - 1970) * 12 + of_year_month - 1
end

-- Caps: tokens and money, -1 where there is none.
local function cap_of(limits, kind)
  if kind == '0' then return limits[1], limits[2] end
  if kind == '1' then return limits[3], limits[4] end
  if limits[SPAN] < 0 then return -1, -1 end
  return limits[6], limits[7]
end

local function less(a, b) return a > b and a - b or 0 end
local function used_of(sums)
  return sums[SPENT] + sums[OUTSTANDING] + sums[CARRIED],
    sums[SPENT + 1] + sums[OUTSTANDING + 1] + sums[CARRIED + 1]
end

local function add(field, at, tokens, money)
  local sums = get(field) or rare().balance(field)
  sums[at], sums[at + 1] = sums[at] + tokens, sums[at + 1] + money
  dirty[field] = true
  return sums
end

-- Holds.
local function live(hold)
  local known = get('H' .. hold)
  return known and known[PINS] and known
end

local function ended(hold)
  local known = get('H' .. hold)
  return known and not known[PINS] and known[SINCE] >= meta[HORIZON] and known
end

-- Writes what changed in the expiries. Additions come first: a set that is empty for a moment loses its time to live.
local function write_expiries()
  local set, drop = {}, {}
  for hold, expires in pairs(expiries) do
    if expires then
      set[#set + 1] = expires
      set[#set + 1] = hold
    else
      drop[#drop + 1] = hold
    end
  end
  expiries = {}
  all('ZADD', EXPIRIES, set)
  all('ZREM', EXPIRIES, drop)
end

-- What frees goes before what fills: once a script has written, a full server lets it write more.
local function write_ends()
  write_expiries()
  local new = #remembered
  if new > 0 then
    if call('RPUSH', ENDS, unpack(remembered)) == new then touched[ENDS] = true end
    remembered = {}
  end
  if gone > 0 then
    call('LTRIM', ENDS, gone, -1)
    gone = 0
  end
end

local function path_of(text)
  local path = parsed[text]
  if path then return path end
  path = {}
  for account, told in gmatch(text, 'A([0-9a-f]+) ([^A]+)') do
    path[#path + 1] = {account = account, field = 'A' .. account, told = told}
  end
  parsed[text] = path
  return path
end

