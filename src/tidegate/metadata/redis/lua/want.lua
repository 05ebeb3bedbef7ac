local token, holder = unpack(call('HMGET', key('u', a.id), 't', 'h'))
if token and holder ~= '' then
  expect('set', key('wanted', holder))
  want(holder, token)
end
