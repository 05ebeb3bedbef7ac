-- Leases that were given up, and scripts that may have taken one, whose answer nobody will hear.
expect('set', key('wanted', a.holder))
for _, lease in ipairs(a.leases) do
  local token, holder = unpack(call('HMGET', key('u', lease.id), 't', 'h'))
  if token == lease.token and holder == a.holder then
    abandon(lease.id, token)
  end
end
for _, unheard in ipairs(a.unheard) do
  local token, holder, op = unpack(call('HMGET', key('u', unheard.id), 't', 'h', 'n'))
  if op == unheard.op and holder == a.holder then
    abandon(unheard.id, token)
  else
    -- Should it still be on its way, it finds that it was done, and does nothing.
    local did = key('did', a.holder .. ':' .. unheard.generation)
    call('HSETNX', did, unheard.op, cmsgpack.pack({'void'}))
    call('PEXPIRE', did, 180000)
  end
end
