local token, holder = unpack(call('HMGET', key('u', a.id), 't', 'h'))
if token ~= a.token or holder ~= a.holder then return 0 end
stay_alive()
return 1
