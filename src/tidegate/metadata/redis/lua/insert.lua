local done = answered()
if done then return done end
if call('EXISTS', key('u', a.id)) == 1 then return {'exists'} end
if a.kind == 'final' then
  for _, part in ipairs(a.parts) do
    local kind, state = unpack(call('HMGET', key('u', part), 'k', 's'))
    if kind ~= 'partial' or (state ~= 'receiving' and state ~= 'complete') then
      return {'part', part}
    end
  end
end
local promised, stored = sums()
promised, stored = plus(promised, a.new.promised, '0'), plus(stored, a.new.stored, '0')
if a.unfinished and is_over(promised, a.unfinished) then return {'over', promised} end
if a.missing then
  local missing = plus(promised, '0', stored)
  if is_over(missing, a.missing) then return {'lacks', missing} end
end
expect('zset', key('ev', a.id), unpack(INDEXES))
expect('hash', P .. ':claims')
for _, part in ipairs(a.parts) do expect('zset', key('pins', part)) end
expect('string', P .. ':token', P .. ':sequence')

call('HSET', key('u', a.id), 'v', a.new.version, 'r', a.new.record, 's', a.new.state, 'k', a.kind,
  'p', a.new.promised, 'o', a.new.stored)
index(a.id, nil, a.new)
tell(a.id)
return answer({'ok', a.lease and grant(a.id, a.boot) or ''})
