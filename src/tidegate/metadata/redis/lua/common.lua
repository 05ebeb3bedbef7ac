-- What stands before every script. KEYS[1] is the prefix of the installation, ARGV[1] the arguments.
-- Whatever a script may refuse, it refuses before its first write: nothing is ever rolled back.
local P, call = KEYS[1], redis.call
local a = cmsgpack.unpack(ARGV[1])

local function key(kind, id)
  return P .. ':' .. kind .. ':' .. id
end

-- ---------------------------------------------------------------- scripts whose answer was lost

-- Such a script is sent again, with the same `op`, and finds what it answered before.
local function answered()
  local reply = call('HGET', key('did', a.holder .. ':' .. a.generation), a.op)
  return reply and cmsgpack.unpack(reply)
end

local function answer(reply)
  local did = key('did', a.holder .. ':' .. a.generation)
  call('HSET', did, a.op, cmsgpack.pack(reply))
  if #a.heard > 0 then
    call('HDEL', did, unpack(a.heard))
  end
  if call('PTTL', did) < 0 then
    call('PEXPIRE', did, 180000)
  end
  return reply
end

-- Raise where a key that is about to be written is not what it should be.
local function expect(kind, ...)
  for _, name in ipairs({...}) do
    local found = call('TYPE', name).ok
    if found ~= 'none' and found ~= kind then
      error({err = 'WRONGTYPE ' .. name .. ' is a ' .. found .. ', expected a ' .. kind})
    end
  end
end

-- --------------------------------------------------------------------------------------- leases

local function alive(holder)
  return call('EXISTS', key('holder', holder)) == 1
end

local function stay_alive()
  call('SET', key('holder', a.holder), a.boot, 'PX', a.ttl)
end

-- Where channels are not permitted others look for themselves: that is no reason to stop midway.
local function say(holder, message)
  redis.pcall('PUBLISH', key('told', holder), message)
end

-- Ask a holder to let go, or tell it that it has lost.
local function want(holder, token)
  local wanted = key('wanted', holder)
  call('SADD', wanted, token)
  call('PEXPIRE', wanted, 60000)
  say(holder, 'w' .. token)
end

local function wake(id)
  local waiting = key('waiting', id)
  for _, holder in ipairs(call('SMEMBERS', waiting)) do
    say(holder, 'r' .. id)
  end
  call('DEL', waiting)
end

local function grant(id, boot)
  local token = string.format('%.0f', call('INCR', P .. ':token'))
  call('HSET', key('u', id), 't', token, 'h', a.holder, 'b', boot, 'n', a.op)
  if not alive(a.holder) then
    stay_alive()
  end
  return token
end

local function let_go(id, token)
  call('HDEL', key('u', id), 't', 'h', 'b', 'n')
  call('SREM', key('wanted', a.holder), token)
  wake(id)
end

-- The lease stays, but nobody has it.
local function abandon(id, token)
  call('HSET', key('u', id), 'h', '')
  call('SREM', key('wanted', a.holder), token)
  wake(id)
end

-- ----------------------------------------------------------------------------------------- sums

-- Sums of sizes pass 2^53, up to which a number is exact here, and 2^63, which INCRBY can hold. So
-- a number is two: a high one, and a low one below 10^12. Each stays exact for 10^9 uploads.
local BASE = 1e12

local function split(decimal)
  if #decimal > 12 then
    return tonumber(decimal:sub(1, -13)), tonumber(decimal:sub(-12))
  end
  return 0, tonumber(decimal)
end

local function joined(high, low)
  if high == 0 then
    return string.format('%.0f', low)
  end
  return string.format('%.0f%012.0f', high, low)
end

local function plus(sum, more, less)
  local h1, l1 = split(sum)
  local h2, l2 = split(more)
  local h3, l3 = split(less)
  local low = l1 + l2 - l3
  local carried = math.floor(low / BASE)
  return joined(h1 + h2 - h3 + carried, low - carried * BASE)
end

local function is_over(sum, limit)
  local h1, l1 = split(sum)
  local h2, l2 = split(limit)
  return h1 > h2 or (h1 == h2 and l1 > l2)
end

-- What all that are receiving come to: promised, and stored of that.
local function sums()
  local found = call('HMGET', P .. ':sums', 'promised', 'stored')
  return found[1] or '0', found[2] or '0'
end

-- -------------------------------------------------------------------------------------- records

local INDEXES = {P .. ':ids', P .. ':expiry', P .. ':ended', P .. ':finals', P .. ':events',
  P .. ':lines', P .. ':pending', P .. ':in:receiving', P .. ':in:complete', P .. ':in:expired',
  P .. ':in:terminated', P .. ':in:failed', P .. ':undone'}

local function score(name, id, at)
  if at then
    call('ZADD', P .. ':' .. name, at, id)
  else
    call('ZREM', P .. ':' .. name, id)
  end
end

-- Bring everything that is found by something else than its id up to date. `old` and `new` have
-- state, promised, stored; nil: there is, or will be, no record.
local function index(id, old, new)
  local was, is = old and old.state, new and new.state
  if was ~= is then
    if was then call('ZREM', P .. ':in:' .. was, id) end
    if is then call('ZADD', P .. ':in:' .. is, 0, id) end
  end
  local promised, stored = sums()
  local before = was == 'receiving' and old or {promised = '0', stored = '0'}
  local after = is == 'receiving' and new or {promised = '0', stored = '0'}
  if before.promised ~= after.promised or before.stored ~= after.stored then
    call('HSET', P .. ':sums', 'promised', plus(promised, after.promised, before.promised),
      'stored', plus(stored, after.stored, before.stored))
  end
  score('ids', id, new and 0)
  score('expiry', id, new and new.expires)
  score('ended', id, new and new.ended)
  score('undone', id, new and new.undone)
  if is == 'receiving' and was ~= is then
    for _, part in ipairs(a.parts) do
      call('ZADD', key('pins', part), 0, id)
    end
    if a.kind == 'final' then call('ZADD', P .. ':finals', 0, id) end
  elseif was == 'receiving' and was ~= is then
    for _, part in ipairs(a.parts) do
      call('ZREM', key('pins', part), id)
    end
    call('ZREM', P .. ':finals', id)
  end
end

-- --------------------------------------------------------------------------------------- events

-- Have what an upload has to tell delivered at once; if it is claimed, then after that.
local function hurry(id)
  local first = call('ZRANGE', key('ev', id), 0, 0)[1]
  if not first then
    call('ZREM', P .. ':lines', id)
  elseif call('HEXISTS', P .. ':claims', id) == 1 then
    call('HSET', P .. ':claims', id, 'more')
  else
    -- Before all times: and the longer it waits, the sooner.
    call('ZADD', P .. ':lines', -1 / tonumber(first), id)
  end
end

local function tell(id)
  for _, event in ipairs(a.events) do
    -- As wide as any: members of equal score are in the order of their bytes.
    local sequence = string.format('%016.0f', call('INCR', P .. ':sequence'))
    call('HSET', key('e', sequence), 'id', id, 'record', event.record, 'at', event.at, 'done', '')
    call('ZADD', P .. ':events', sequence, sequence)
    call('ZADD', P .. ':pending', event.at, sequence)
    call('ZADD', key('ev', id), sequence, sequence)
  end
  if #a.events > 0 then hurry(id) end
end
