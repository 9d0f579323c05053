package upstream

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/logging"
)

// CatchStderr turns everything written to os.Stderr from now on into lines of the log:
// some embedded code has its own logger there, which nothing can set. Kubernetes' etcd
// clients write JSON to it, some thousand lines when etcd is away for a while
// (apiserver/pkg/storage/storagebackend/factory/etcd3.go: etcd3ClientLogger).
//
// File descriptor 2 is unchanged, so the runtime's report of a crash still goes there.
// To keep writing to the real standard error, copy *os.Stderr before the call. Call it
// once, from main; it cannot be undone.
func CatchStderr(logs *logging.Logs) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	*os.Stderr = *w // in place: loggers already hold copies of the pointer
	go readStderr(r, logs)
	return nil
}

// stderrComponent is the component of the lines that name none.
const stderrComponent = "stderr"

// readStderr writes the lines of in to the log and returns at the end of in.
func readStderr(in io.Reader, logs *logging.Logs) {
	loggers := map[string]slog.Handler{}
	lines := bufio.NewReaderSize(in, logging.MaxLine)
	for {
		text, err := lines.ReadSlice('\n')
		if line := strings.TrimRight(string(text), "\r\n"); line != "" {
			component, r := stderrLine(line)
			if loggers[component] == nil {
				loggers[component] = newNoiseFilter(context.Background(), logs.Handler(component), always(component))
			}
			if h := loggers[component]; h.Enabled(context.Background(), r.Level) {
				_ = h.Handle(context.Background(), r) // nothing can be done about it
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) { // the rest of a longer line becomes the next line
			return
		}
	}
}

// zapLevels maps the levels in zap's JSON to slog's.
var zapLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
	"error": slog.LevelError, "dpanic": slog.LevelError, "panic": slog.LevelError, "fatal": slog.LevelError,
}

// stderrLine parses a line of zap's JSON, and makes any other line a warning.
func stderrLine(line string) (component string, r slog.Record) {
	var fields map[string]any
	if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &fields) != nil {
		return stderrComponent, slog.NewRecord(time.Now(), slog.LevelWarn, line, 0)
	}
	take := func(key string) string {
		text, _ := fields[key].(string)
		delete(fields, key)
		return text
	}
	level, known := zapLevels[take("level")]
	message := take("msg")
	if !known || message == "" {
		return stderrComponent, slog.NewRecord(time.Now(), slog.LevelWarn, line, 0)
	}
	if component = take("logger"); component == "" {
		component = stderrComponent
	}
	take("ts")
	take("caller")
	r = slog.NewRecord(time.Now(), level, message, 0)
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		r.AddAttrs(slog.Any(key, fields[key]))
	}
	return component, r
}
