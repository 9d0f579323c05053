package upgradecheck

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// Asked are the deprecated APIs that clients have asked API servers for since their start.
type Asked struct {
	APIs    map[DeprecatedAPI]bool
	Servers int      // that have answered
	Silent  []string // addresses of those that have not
}

// DeprecatedAPI is an API that Kubernetes will remove, or has deprecated.
type DeprecatedAPI struct {
	Group, Version, Resource string
	Removed                  string // the release without it, such as "1.38"; "" if there is none yet
}

func (d DeprecatedAPI) String() string {
	version := d.Version
	if d.Group != "" {
		version = d.Group + "/" + d.Version
	}
	return d.Resource + " of " + version
}

// goneIn reports whether the API is removed in that version of Kubernetes.
func (d DeprecatedAPI) goneIn(kubernetes string) bool {
	steps, known := etcdfiles.Steps(d.Removed, kubernetes)
	return known && steps >= 0
}

// Requests are the requests for deprecated APIs in the newest part of the audit log.
type Requests struct {
	Since time.Time // of the first record that was read
	By    []Requester
}

// Requester is a client of a deprecated API.
type Requester struct {
	API   DeprecatedAPI
	User  string
	Agent string // the first word of its User-Agent
	Count int
	Last  time.Time
}

const (
	auditTail = 64 << 20 // bytes of the audit log that are read, from its end
	auditLine = 1 << 20  // bytes of one record; a longer one is left out
	lately    = 7 * 24 * time.Hour
)

// The annotations of records of deprecated requests (apiserver/pkg/endpoints/deprecation).
const (
	annotationDeprecated = "k8s.io/deprecated"
	annotationRemoved    = "k8s.io/removed-release"
)

// auditRecord is the part of a record of the audit log that matters.
type auditRecord struct {
	Annotations map[string]string `json:"annotations"`
	User        struct {
		Username string `json:"username"`
	} `json:"user"`
	UserAgent string `json:"userAgent"`
	Object    struct {
		Group    string `json:"apiGroup"`
		Version  string `json:"apiVersion"`
		Resource string `json:"resource"`
	} `json:"objectRef"`
	Received time.Time `json:"requestReceivedTimestamp"`
}

// ReadRequests reads the end of an audit log of the API server here.
func ReadRequests(path string) (*Requests, error) {
	if path == "" || path == "-" {
		return nil, errors.New("no audit log is written to a file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Seek(max(size-auditTail, 0), io.SeekStart)
	}
	if err != nil {
		return nil, err
	}
	return readRequests(io.LimitReader(f, auditTail), size > auditTail)
}

// readRequests reads records; cut means that the first one may lack its beginning.
func readRequests(in io.Reader, cut bool) (*Requests, error) {
	r, lines := &Requests{}, bufio.NewReaderSize(in, auditLine)
	found := map[Requester]*Requester{}
	for {
		line, err := lines.ReadSlice('\n')
		whole := err == nil && !cut
		cut = errors.Is(err, bufio.ErrBufferFull)
		if whole {
			r.add(found, line)
		}
		if err != nil && !cut {
			if !errors.Is(err, io.EOF) {
				return nil, err
			}
			break
		}
	}
	for _, q := range found {
		r.By = append(r.By, *q)
	}
	slices.SortFunc(r.By, func(a, b Requester) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.User+a.Agent+a.API.String(), b.User+b.Agent+b.API.String()))
	})
	return r, nil
}

func (r *Requests) add(found map[Requester]*Requester, line []byte) {
	deprecated := bytes.Contains(line, []byte(annotationDeprecated))
	if !deprecated && !r.Since.IsZero() {
		return
	}
	var a auditRecord
	if json.Unmarshal(line, &a) != nil {
		return
	}
	if r.Since.IsZero() {
		r.Since = a.Received
	}
	if a.Annotations[annotationDeprecated] != "true" {
		return
	}
	agent, _, _ := strings.Cut(a.UserAgent, " ")
	q := Requester{User: text.Line(a.User.Username), Agent: text.Line(agent), API: DeprecatedAPI{
		Group: a.Object.Group, Version: a.Object.Version, Resource: a.Object.Resource, Removed: a.Annotations[annotationRemoved]}}
	if found[q] == nil {
		known := q
		found[q] = &known
	}
	found[q].Count++
	if found[q].Last.Before(a.Received) {
		found[q].Last = a.Received
	}
}

// own reports whether the client is part of kthwd, and is upgraded with it.
func (q Requester) own() bool {
	switch q.User {
	case "system:apiserver", "system:kube-controller-manager", "system:kube-scheduler":
		return true
	}
	return strings.HasPrefix(q.User, "system:serviceaccount:kube-system:") && strings.HasPrefix(q.Agent, "kthwd/")
}

// judgeDeprecated says which APIs that the new binary no longer has are still asked for, and by whom.
func judgeDeprecated(in Input) Result {
	const guide = "move the clients to a newer version: https://kubernetes.io/docs/reference/using-api/deprecation-guide/"
	switch {
	case in.BinaryErr != nil:
		return noBinary("requests for deprecated APIs are")
	case in.Report == nil:
		return in.notRunning("requests for deprecated APIs are")
	case in.AskedErr != nil && in.Requests == nil:
		return unknown("kthwd kubectl get --raw /metrics", "requests for deprecated APIs are not judged: %s", why(in.AskedErr))
	}
	clients, own := in.clients()
	if len(clients) > 0 {
		return no(guide, "Kubernetes %s no longer has what is asked for: %s", in.Binary.Kubernetes, list(clients))
	}
	var gone []string
	for api := range in.Asked.APIs {
		if api.goneIn(in.Binary.Kubernetes) && !own[api] {
			gone = append(gone, api.String())
		}
	}
	slices.Sort(gone)
	switch {
	case len(gone) > 0 && in.RequestsErr != nil:
		return warn(guide, "Kubernetes %s no longer has %s, asked for since the API servers' start; the clients are not known: %s", in.Binary.Kubernetes, list(gone), why(in.RequestsErr))
	case len(gone) > 0:
		return warn(guide, "Kubernetes %s no longer has %s, asked for since the API servers' start; the audit log here names no client within %d days", in.Binary.Kubernetes, list(gone), lately/(24*time.Hour))
	case in.AskedErr != nil:
		return unknown("kthwd kubectl get --raw /metrics", "requests for deprecated APIs are not judged: %s", why(in.AskedErr))
	case len(in.Asked.Silent) > 0:
		return unknown("kthwd status --cluster", "API servers asked: %d, and these did not answer: %s", in.Asked.Servers, list(in.Asked.Silent))
	}
	return ok("none that Kubernetes %s has removed; API servers asked: %d%s", in.Binary.Kubernetes, in.Asked.Servers, in.later())
}

// clients are the clients that have lately asked for an API that the new binary no longer has; own
// are such APIs for which kthwd's own programs ask.
func (in Input) clients() (clients []string, own map[DeprecatedAPI]bool) {
	own = map[DeprecatedAPI]bool{}
	if in.Requests == nil {
		return nil, own
	}
	for _, q := range in.Requests.By {
		switch {
		case !q.API.goneIn(in.Binary.Kubernetes) || in.Now.Sub(q.Last) > lately:
		case q.own():
			own[q.API] = true
		default:
			clients = append(clients, fmt.Sprintf("%s by %s (%s), %d times, the last %s ago", q.API, q.User, q.Agent, q.Count, status.Age(in.Now.Sub(q.Last))))
		}
	}
	return clients, own
}

// later names the APIs that a later minor removes.
func (in Input) later() string {
	all := map[string]bool{}
	for api := range in.Asked.APIs {
		if api.Removed != "" {
			all[fmt.Sprintf("%s in %s", api, api.Removed)] = true
		}
	}
	if len(all) == 0 {
		return ""
	}
	return "; removed later: " + list(slices.Sorted(maps.Keys(all)))
}
