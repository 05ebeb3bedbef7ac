for _, sequence in ipairs(a.sequences) do
  local e = key('e', sequence)
  local id = call('HGET', e, 'id')
  if id then
    local events = key('ev', id)
    expect('zset', events, P .. ':events', P .. ':due', P .. ':pending', P .. ':given')
    call('DEL', e)
    for _, name in ipairs({events, P .. ':events', P .. ':due', P .. ':pending', P .. ':given'}) do
      call('ZREM', name, sequence)
    end
    bring_forward(id)
  end
end
