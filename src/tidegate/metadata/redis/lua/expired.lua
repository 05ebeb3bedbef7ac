local found, from = {}, 0
repeat
  local ids = call('ZRANGEBYSCORE', P .. ':expiry', '-inf', a.now, 'LIMIT', from, 256)
  for _, id in ipairs(ids) do
    local token, holder = unpack(call('HMGET', key('u', id), 't', 'h'))
    local held = token and holder ~= '' and not a.abandoned[token] and alive(holder)
    if not held and call('EXISTS', key('pins', id)) == 0 then
      found[#found + 1] = id
      if #found >= a.limit then return found end
    end
  end
  from = from + #ids
until #ids < 256
return found
