local e = key('e', a.sequence)
local id = call('HGET', e, 'id')
if not id then return end
local events = key('ev', id)
expect('zset', events, P .. ':events', P .. ':due', P .. ':pending', P .. ':given')
call('DEL', e)
for _, name in ipairs({events, P .. ':events', P .. ':due', P .. ':pending', P .. ':given'}) do
  call('ZREM', name, a.sequence)
end
bring_forward(id)
