local token, holder = unpack(call('HMGET', key('u', a.id), 't', 'h'))
if token == a.token and holder == a.holder then
  expect('set', key('waiting', a.id), key('wanted', a.holder))
  let_go(a.id, token)
end
