local done = answered()
if done then return done end
local u = key('u', a.id)
local version, token, holder, boot, state, promised, stored =
  unpack(call('HMGET', u, 'v', 't', 'h', 'b', 's', 'p', 'o'))
if token ~= a.token or holder ~= a.holder then return {'lost'} end
if version ~= a.version then return {'stale', version} end
if a.unless_pinned and call('EXISTS', key('pins', a.id)) == 1 then return {'pinned'} end
expect('zset', key('ev', a.id), unpack(INDEXES))
for _, part in ipairs(a.parts) do expect('zset', key('pins', part)) end
expect('hash', key('seg', a.id), P .. ':claims')
expect('set', key('waiting', a.id), key('wanted', a.holder))
expect('string', P .. ':sequence')

local old = {state = state, promised = promised, stored = stored}
if a.forget then
  let_go(a.id, a.token)
  call('DEL', u, key('seg', a.id))
  index(a.id, old, nil)
else
  call('HSET', u, 'v', a.new.version, 'r', a.new.record, 's', a.new.state,
    'p', a.new.promised, 'o', a.new.stored)
  for _, segment in ipairs(a.segments) do
    call('HSET', key('seg', a.id), segment.index, segment.record)
  end
  index(a.id, old, a.new)
  if a.release then
    let_go(a.id, a.token)
  elseif boot ~= a.boot then
    call('HSET', u, 'b', a.boot)
  end
end
tell(a.id)
return answer({'ok'})
