-- Whatever this holder still has is abandoned.
call('DEL', key('holder', a.holder), key('wanted', a.holder))
