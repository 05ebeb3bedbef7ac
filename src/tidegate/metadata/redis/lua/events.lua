local page = {}
local found = call('ZRANGEBYSCORE', P .. ':events', '(' .. a.after, '+inf', 'LIMIT', 0, a.limit)
for _, sequence in ipairs(found) do
  local id, record, done, retries =
    unpack(call('HMGET', key('e', sequence), 'id', 'record', 'done', 'retries'))
  local first = call('ZRANGE', key('ev', id), 0, 0)[1] == sequence
  page[#page + 1] = {first and call('ZSCORE', P .. ':lines', id),
    call('ZSCORE', P .. ':given', sequence), sequence, record, done, retries}
end
return page
