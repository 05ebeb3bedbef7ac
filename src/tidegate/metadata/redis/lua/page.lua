-- The id to go on after, or false; and the records of the page, of a kind if one is asked for.
local ids = call('ZRANGEBYLEX', P .. ':' .. a.index, a.after, '+', 'LIMIT', 0, a.limit)
local page = {#ids == a.limit and ids[#ids]}
for _, id in ipairs(ids) do
  local record, kind = unpack(call('HMGET', key('u', id), 'r', 'k'))
  if record and (not a.kind or kind == a.kind) then
    page[#page + 1] = record
  end
end
return page
