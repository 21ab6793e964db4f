-- One call: the time, the book, the run; the asks, one after the other; then what changed is written.
local function begin()
  local stamp, seen = ARGV[1], nil
  if stamp == '' then
    local time = call('TIME')
    now = tonumber(time[1]) * 1000000 + tonumber(time[2])
    seen = floor(now / 1000)
  else
    now, seen = tonumber(stamp), tonumber(ARGV[2])
  end

  -- Wall time only counts forward.
  local function see()
    wall = seen
    day = floor(wall / DAY_MS)
    month = month_of(day)
    open_day, open_month = format('0%016.0f', day), format('1%016.0f', month)
  end
  see()

  local fields, draws = {'meta'}, false
  for at = FIRST, #ARGV, WORDS do
    local name, text = ARGV[at], ARGV[at + 6]
    fields[#fields + 1] = 'H' .. ARGV[at + 1]
    draws = draws or name ~= 'settle' and name ~= 'refund'
    if name ~= 'reserve' then
      local pins = text ~= '' and not parsed[text] and pins_of(text) or {}
      for i = 1, #pins do fields[#fields + 1] = pins[i] end
    elseif not parsed[text] then
      local path = path_of(text)
      for i = 1, #path do
        local of = path[i]
        fields[#fields + 1] = of.field
        fields[#fields + 1] = 'B' .. of.account .. open_day
        fields[#fields + 1] = 'B' .. of.account .. open_month
      end
    end
  end
  local asks = (#ARGV + 1 - FIRST) / WORDS
  forgetting, together = forgetting + asks, asks + 1
  fetch(fields)
  meta = cache['meta'] or {0, 0, 0, 0, ARGV[3], 0, 0, NEVER, NEVER, 0, NEVER, call('LLEN', ENDS)}
  if meta[NOW] > now then now = meta[NOW] end
  if meta[WALL] > wall then
    seen = meta[WALL]
    see()
  end
  meta[NOW], meta[WALL] = now, wall
  put('meta', meta)

  local info = call('INFO', 'replication')
  local _, at = info:find('master_replid:', 1, true)
  run = (at and info:match('^%w+', at + 1) or 'none') .. '.' .. meta[TOKEN]
  -- A full server takes no draws, and what else leaves with them it may. This changes nothing, and is refused where what a
  -- draw writes would be; alone it would be the first to hear of that.
  return draws and asks > 1 and redis.pcall('ZADD', EXPIRIES, 'XX', 0, '')
end

local function perform(at, full)
  local name, hold, told = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local tokens, money, text = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), ARGV[at + 6]
  if now >= meta[NEXT_EXPIRY] then rare().expire(hold) end
  if name == 'settle' then return ends().settle(hold, told, tokens, money, text) end
  if name == 'refund' then return ends().refund(hold) end
  if full then return {'oom', full} end
  if name == 'assert' then return draws().assert(hold, tokens, money, tonumber(ARGV[at + 5]), text) end
  if told ~= '' and told ~= run then return {'other'} end
  if name == 'extend' then return draws().extend(hold, tokens, money) end
  return draws().reserve(hold, tokens, money, tonumber(ARGV[at + 5]), text)
end

-- Writes what changed, and lets the keys live on.
local function write()
  write_ends()
  local keep = KEEP_MS + 2 * meta[LONGEST]
  if now - meta[RENEWED] > DAY then
    meta[RENEWED], meta[LIVE], meta[ENDED] = now, call('ZCARD', EXPIRIES), call('LLEN', ENDS)
    meta[NEXT_EXPIRY], meta[NEXT_DUE], meta[OLDEST] = 0, 0, 0
    for i = 1, #KEYS do touched[KEYS[i]] = true end
  end
  local set, drop = {}, {}
  for field in pairs(dirty) do
    local value = cache[field]
    if not value then
      drop[#drop + 1] = field
    else
      set[#set + 1] = field
      if sub(field, 1, 1) == 'B' then
        set[#set + 1] = struct.pack(SUMS, unpack(value, 1, WHEN_DUE))
      else
        set[#set + 1] = cmsgpack.pack(value)
      end
    end
  end
  all('HDEL', BOOK, drop)
  all('HSET', BOOK, set)
  for key in pairs(touched) do call('PEXPIRE', key, keep) end
end

local full = begin()
if full and type(full) == 'table' then
  if not full.err:find('OOM', 1, true) then return full end
  full = full.err
else
  full = nil
end
local answers = {run}
for at = FIRST, #ARGV, WORDS do answers[#answers + 1] = perform(at, full) end
write()
return answers
