-- Who has the lease, if it is someone alive; and wake us when another lets go.
local token, holder = unpack(call('HMGET', key('u', a.id), 't', 'h'))
if not token or holder == '' or not alive(holder) then return false end
if holder ~= a.holder then
  local waiting = key('waiting', a.id)
  expect('set', waiting)
  if call('SADD', waiting, a.holder) == 1 then
    call('PEXPIRE', waiting, 60000)
  end
end
return {holder, token}
