-- Counters in Valkey or Redis: one script, so that a batch of requests is one step and one trip.
--
-- KEYS[1] is what is remembered of the gateway process that asks, KEYS[2] the processes that live,
-- KEYS[2i+1] and KEYS[2i+2] the counter i and its leases. ARGV[1] is msgpack: command, process,
-- lease in ms, counters as {kind, span in ms, until in ms}, and what the command needs.
--
-- A counter is msgpack: what is held, then pairs of bucket and amount, the oldest first; see
-- counting.py, which counts in the same way. Its leases are a sorted set: name:amount by expiry.
-- Everything has a time to live. The clock is this server's.

local WINDOW, PERIOD, CONCURRENT = 0, 1, 2
local BUCKETS = 50
local LATE_MS = 3600000
local LONGEST_MS = 10 * 365 * 86400000
local RETRY_CONCURRENT_MS = 1000
local PROCESS_MS = 86400000
local BEATS = 3

local command, process, lease_ms, kinds, a, b, c, d = unpack(cmsgpack.unpack(ARGV[1]))
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local counters = {}

local function amount_of(member)
  return tonumber(string.match(member, ':(%d+)$'))
end

-- The counter as it is now: leases and buckets whose time has come are gone from it.
local function find(i)
  local found = counters[i]
  if found then return found end
  local kind = kinds[i]
  found = {kind = kind[1], span = kind[2], ends = kind[3], held = 0, counted = 0, buckets = {},
           key = KEYS[2 * i + 1], leases = KEYS[2 * i + 2], dirty = false}
  found.width = math.max(1, math.ceil(found.span / BUCKETS))
  counters[i] = found
  local stored = redis.call('GET', found.key)
  if not stored then return found end
  local packed = cmsgpack.unpack(stored)
  found.held = packed[1]
  local first = found.kind == WINDOW and math.floor((now - found.span) / found.width) or 0
  for at = 2, #packed, 2 do
    if packed[at] >= first then
      found.buckets[#found.buckets + 1] = packed[at]
      found.buckets[#found.buckets + 1] = packed[at + 1]
      found.counted = found.counted + packed[at + 1]
    end
  end
  if found.held > 0 then
    local gone = redis.call('ZRANGEBYSCORE', found.leases, '-inf', now)
    if #gone > 0 then
      for _, member in ipairs(gone) do found.held = found.held - amount_of(member) end
      redis.call('ZREMRANGEBYSCORE', found.leases, '-inf', now)
      found.dirty = true
    end
    -- A server short of memory may have evicted the leases alone.
    if redis.call('EXISTS', found.leases) == 0 then found.held = 0 end
    found.held = math.max(0, found.held)
  end
  return found
end

-- Count what was used so many ms ago, or at this moment of ours; a negative amount takes back.
local function add(counter, amount, age, at_ms)
  if amount == 0 or counter.kind == CONCURRENT then return end
  local number, buckets = 0, counter.buckets
  if counter.kind == WINDOW then
    if at_ms == 0 then at_ms = now - age end
    number = math.floor(at_ms / counter.width)
    if number < math.floor((now - counter.span) / counter.width) then return end
  end
  local at = #buckets - 1
  while at > 0 and buckets[at] > number do at = at - 2 end
  if at > 0 and buckets[at] == number then
    amount = math.max(amount, -buckets[at + 1])
    buckets[at + 1] = buckets[at + 1] + amount
  elseif amount > 0 then
    table.insert(buckets, at + 2, number)
    table.insert(buckets, at + 3, amount)
  else
    return
  end
  counter.counted = counter.counted + amount
  counter.dirty = true
end

local function hold(counter, member, amount)
  if redis.call('ZADD', counter.leases, now + lease_ms, member) == 1 then
    counter.held = counter.held + amount
  end
  redis.call('PEXPIRE', counter.leases, 2 * lease_ms)
  counter.dirty = true
end

local function release(counter, member, amount)
  if redis.call('ZREM', counter.leases, member) == 1 then
    counter.held = math.max(0, counter.held - amount)
    counter.dirty = true
  end
end

-- In how many ms so much more is free again; with 0, in how many all is.
local function resets(counter, missing)
  if counter.kind == PERIOD then return math.max(0, counter.ends - now) end
  if counter.kind == CONCURRENT then return missing > 0 and RETRY_CONCURRENT_MS or 0 end
  local buckets, whole = counter.buckets, counter.span + counter.width
  if missing <= 0 then
    local last = 0
    if #buckets > 0 then last = (buckets[#buckets - 1] + 1) * counter.width + counter.span - now end
    return counter.held > 0 and math.max(last, whole) or last
  end
  for at = 1, #buckets, 2 do
    missing = missing - buckets[at + 1]
    if missing <= 0 then return (buckets[at] + 1) * counter.width + counter.span - now end
  end
  return whole
end

local function save()
  for _, counter in pairs(counters) do
    if counter.dirty then
      local packed = {counter.held, unpack(counter.buckets)}
      local ttl = 2 * lease_ms
      if counter.kind == WINDOW then
        ttl = ttl + counter.span + 2 * counter.width
      elseif counter.kind == PERIOD then
        ttl = math.min(math.max(ttl, counter.ends - now + LATE_MS), LONGEST_MS)
        ttl = math.max(ttl, LATE_MS)
      end
      redis.call('SET', counter.key, cmsgpack.pack(packed), 'PX', ttl)
    end
  end
end

-- One request: {lease, {counter, amount, limit, refuses, holds}, …}. Gives who had no room, then
-- what is used and when it resets, by twos.
local function reserve(request)
  local asked, refused, answer = {}, {}, {}
  for n = 2, #request do
    local i, amount, limit, refuses = unpack(request[n])
    local counter = find(i)
    asked[i] = (asked[i] or 0) + amount
    if refuses and counter.counted + counter.held + asked[i] > limit then
      refused[#refused + 1] = n - 2
    end
  end
  answer[1] = refused
  for n = 2, #request do
    local i, amount, limit, refuses, holds = unpack(request[n])
    local counter, missing = counters[i], 0
    if #refused > 0 then
      missing = refuses and counter.counted + counter.held + amount - limit or 0
    elseif holds then
      hold(counter, request[1] .. '.' .. (n - 2) .. ':' .. string.format('%.0f', amount), amount)
    else
      add(counter, amount, 0, 0)
    end
    answer[#answer + 1] = counter.counted + counter.held
    answer[#answer + 1] = resets(counter, missing)
  end
  return answer
end

local commands = {}

-- a: the process' generation, b: the batch's number, c: batches whose answers arrived, d: requests.
-- What was granted is remembered until the process says that it knows.
function commands.reserve()
  local known = redis.call('HMGET', KEYS[1], 'generation', 'r' .. b)
  if known[1] and tonumber(known[1]) > a then return {'late'} end
  if known[2] then return {'again'} end
  local answers, granted = {}, {}
  for n, request in ipairs(d) do
    answers[n] = reserve(request)
    granted[n] = #answers[n][1] == 0 and '1' or '0'
  end
  granted[#granted + 1] = ':' .. string.format('%.0f', now)
  for n = 1, #c do redis.call('HDEL', KEYS[1], 'r' .. c[n]) end
  redis.call('HSET', KEYS[1], 'r' .. b, table.concat(granted))
  redis.call('PEXPIRE', KEYS[1], PROCESS_MS)
  save()
  return {'ok', answers, now}
end

-- a: the batch's number, b: {counter, member, held, charge, age in ms, renews, our ms or 0}, …
-- A number that was applied before is not applied again.
function commands.apply()
  local last = redis.call('HGET', KEYS[1], 'applied')
  if not (last and tonumber(last) >= a) then
    for _, change in ipairs(b) do
      local i, member, held, charge, age, renews, at_ms = unpack(change)
      local counter = find(i)
      if renews then
        hold(counter, member, held)
      elseif member ~= '' then
        release(counter, member, held)
      end
      add(counter, charge, age, at_ms)
    end
    redis.call('HSET', KEYS[1], 'applied', string.format('%.0f', a))
    redis.call('PEXPIRE', KEYS[1], PROCESS_MS)
    save()
  end
  return {'ok'}
end

-- Tells that this process lives, and hears how many do.
function commands.beat()
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if a then
    redis.call('ZADD', KEYS[2], now + lease_ms, process)
    redis.call('PEXPIRE', KEYS[2], BEATS * lease_ms)
    redis.call('PEXPIRE', KEYS[1], PROCESS_MS)
  else
    redis.call('ZREM', KEYS[2], process)
  end
  return {'ok', redis.call('ZCARD', KEYS[2])}
end

-- a: the next generation. Batches of earlier ones have no effect from here on; gives what those of
-- which no answer may have arrived had granted. This answer may be lost too, so nothing is forgotten.
function commands.fence()
  redis.call('HSET', KEYS[1], 'generation', string.format('%.0f', a))
  redis.call('PEXPIRE', KEYS[1], PROCESS_MS)
  local fields, results = redis.call('HGETALL', KEYS[1]), {}
  for at = 1, #fields, 2 do
    local number = string.match(fields[at], '^r(%d+)$')
    if number then
      local granted, at_ms = string.match(fields[at + 1], '^([01]*):(%d+)$')
      results[#results + 1] = {tonumber(number), granted, tonumber(at_ms)}
    end
  end
  return {'ok', results}
end

-- a: {amount, limit, refuses} of each counter.
function commands.read()
  local answer = {}
  for i, wanted in ipairs(a) do
    local counter = find(i)
    local used = counter.counted + counter.held
    answer[#answer + 1] = used
    answer[#answer + 1] = resets(counter, wanted[3] and used + wanted[1] - wanted[2] or 0)
  end
  save()
  return {'ok', answer}
end

return cmsgpack.pack(commands[command]())
