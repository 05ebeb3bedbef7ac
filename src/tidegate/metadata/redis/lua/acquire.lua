local record, token, holder, boot = unpack(call('HMGET', key('u', a.id), 'r', 't', 'h', 'b'))
if not record then return {'unknown'} end
local done = answered()
if done then return {done[1], record, unpack(done, 2)} end
if token and holder ~= '' and not a.abandoned[token] and not a.force and alive(holder) then
  return {'held', record}
end
expect('string', P .. ':token')
if token and holder ~= '' then expect('set', key('wanted', holder)) end

-- The boot is handed down until the first commit: should the new holder die before it has
-- recovered, the one after it must still know under which boot the bytes were written.
local new = grant(a.id, token and boot or a.boot)
if token and holder ~= '' and holder ~= a.holder then
  want(holder, token)
end
answer({'taken', new, token or '', token and boot or ''})
return {'taken', record, new, token or '', token and boot or ''}
