package lb

import "sync/atomic"

// slots finds the pair that a descriptor belongs to. Descriptors are small
// numbers that are unique in the process, so it is an array, in pages that are
// made when the first descriptor of one appears. Any goroutine may use it.
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

// set is false for a descriptor beyond the table.
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

// clear takes back set, also one that was false.
func (s *slots) clear(fd int32) {
	if fd < 0 || int(fd/slotPageSize) >= len(s.pages) {
		return
	}
	if page := s.pages[fd/slotPageSize].Load(); page != nil {
		page[fd%slotPageSize].Store(nil)
	}
}
