package selfbackup

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"kthwd/appliance/backup"
	"kthwd/appliance/etcd/dbcopy"
	"kthwd/appliance/status"
)

// PathDatabase is a copy of the database of this member and its SHA-256: GET. The headers have the
// state of its store; a kthwd that sends none is older.
const (
	PathDatabase    = "/database"
	headerRevision  = "Kthwd-Revision"
	headerCompacted = "Kthwd-Compact-Revision"
)

// OpenDatabase asks the running kthwd for a copy of its database.
func OpenDatabase(ctx context.Context, running status.Client) (*backup.Copy, error) {
	body, header, err := running.Open(ctx, PathDatabase)
	if err != nil {
		return nil, err
	}
	size, errSize := strconv.ParseInt(header.Get("Content-Length"), 10, 64)
	revision, errRevision := strconv.ParseInt(header.Get(headerRevision), 10, 64)
	compacted, errCompacted := strconv.ParseInt(header.Get(headerCompacted), 10, 64)
	if errors.Join(errSize, errRevision, errCompacted) != nil {
		return backup.NewCopy(body, 0, dbcopy.Store{}), nil
	}
	return backup.NewCopy(body, size, dbcopy.Store{Revision: revision, Compacted: compacted}), nil
}

// patience is how long a client of PathDatabase may take nothing before the copy ends: as long as
// it lasts, the database gives back no page.
const patience = 5 * time.Minute

// Database returns the handler that gives kthwd backup create the database.
func Database(open func() (*dbcopy.Copy, error)) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{"GET " + PathDatabase: func(w http.ResponseWriter, r *http.Request) {
		c, err := open()
		if err != nil {
			status.Refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		defer c.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(c.Size, 10))
		if c.Store.Revision > 0 {
			w.Header().Set(headerRevision, strconv.FormatInt(c.Store.Revision, 10))
			w.Header().Set(headerCompacted, strconv.FormatInt(c.Store.Compacted, 10))
		}
		if err := c.Send(r.Context(), patient{w, http.NewResponseController(w)}); err != nil {
			panic(http.ErrAbortHandler) // the client sees that the answer breaks off
		}
	}}
}

// patient is a writer to a client that has patience for each write: the client writes to a disk.
type patient struct {
	io.Writer
	connection *http.ResponseController
}

func (p patient) Write(data []byte) (int, error) {
	if err := p.connection.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return p.Writer.Write(data)
}
