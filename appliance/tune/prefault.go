package tune

import (
	"log/slog"
	"runtime"
	"syscall"
	"unsafe"
)

const (
	prefaultSize      = 96 << 20 // about what the heap of a start holds before its first collection
	prefaultRoom      = 8        // … where that is no more than this part of the memory
	madvPopulateWrite = 23       // MADV_POPULATE_WRITE, madvise(2), Linux 5.14
)

// prefault makes the kernel create the pages of the start's heap in one call, on the
// core that is idle while the other makes keys. One page at a time, each
// at its first use, they are a tenth of a start's CPU time.
//
// The block is garbage at once: the collection after it, of a heap that is still
// small, leaves its pages to what is allocated next. They go back to the system
// with the garbage of the start.
func prefault(log *slog.Logger) {
	if UsableMemory()/prefaultRoom < prefaultSize {
		return
	}
	block := make([]byte, prefaultSize)
	start := uintptr(unsafe.Pointer(unsafe.SliceData(block)))
	if _, _, errno := syscall.Syscall(syscall.SYS_MADVISE, start, prefaultSize, madvPopulateWrite); errno != 0 {
		log.Debug("heap not populated", "err", errno)
	}
	runtime.KeepAlive(block)
	block = nil
	runtime.GC()
}
