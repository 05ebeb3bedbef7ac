local turn = key('turn', a.name)
if call('HGET', turn, 'holder') == a.holder then
  call('DEL', turn)
end
