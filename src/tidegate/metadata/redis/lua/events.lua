local page = {}
local found = call('ZRANGEBYSCORE', P .. ':events', '(' .. a.after, '+inf', 'LIMIT', 0, a.limit)
for _, sequence in ipairs(found) do
  local event = call('HMGET', key('e', sequence), 'record', 'attempts', 'done')
  page[#page + 1] = {call('ZSCORE', P .. ':due', sequence),
    call('ZSCORE', P .. ':given', sequence), sequence, event[1], event[2], event[3]}
end
return page
