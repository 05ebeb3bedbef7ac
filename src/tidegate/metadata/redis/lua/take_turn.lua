local turn = key('turn', a.name)
local holder, ends = unpack(call('HMGET', turn, 'holder', 'ends'))
if holder and holder ~= a.holder and tonumber(ends) > tonumber(a.now) and alive(holder) then
  return 0
end
call('HSET', turn, 'holder', a.holder, 'ends', a.ends)
if not alive(a.holder) then stay_alive() end
return 1
