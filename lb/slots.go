package lb

import "sync/atomic"

// slots maps descriptors to pairs. Descriptors are small numbers, unique in the process,
// so the map is an array, in pages that are allocated for their first descriptor. Any
// goroutine may use it.
type slots struct {
	pages [1024]atomic.Pointer[slotPage] // 1024 pages: descriptors below 1 Mi, the kernel's own default limit (fs.nr_open)
}

const slotPageSize = 1024

type slotPage [slotPageSize]atomic.Pointer[pair]

func (s *slots) get(fd int32) *pair {
	page := s.pages[fd/slotPageSize].Load()
	if page == nil {
		return nil
	}
	return page[fd%slotPageSize].Load()
}

// set returns false for a descriptor beyond the table.
func (s *slots) set(fd int32, p *pair) bool {
	if fd < 0 || int(fd/slotPageSize) >= len(s.pages) {
		return false
	}
	at := &s.pages[fd/slotPageSize]
	page := at.Load()
	if page == nil {
		page = new(slotPage)
		if !at.CompareAndSwap(nil, page) {
			page = at.Load()
		}
	}
	page[fd%slotPageSize].Store(p)
	return true
}

// clear undoes set, even a set that returned false.
func (s *slots) clear(fd int32) {
	if fd < 0 || int(fd/slotPageSize) >= len(s.pages) {
		return
	}
	if page := s.pages[fd/slotPageSize].Load(); page != nil {
		page[fd%slotPageSize].Store(nil)
	}
}
