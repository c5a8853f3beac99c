package gcptest

import (
	"io"
	"net/http"
	"strings"
)

const objectsPath = "/storage/v1/b/"

// storage is Cloud Storage's JSON API, as far as reading and listing objects takes it:
// objects.get with alt=media, and objects.list. It holds what [StandIn.Put] put there.
func (s *StandIn) storage(w http.ResponseWriter, r *http.Request) {
	bucket, object, one := strings.Cut(strings.TrimPrefix(r.URL.Path, objectsPath), "/o/")
	bucket = strings.TrimSuffix(bucket, "/o")
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	what := "get"
	if !one {
		what, object = "list", r.URL.Query().Get("prefix")
	}
	if !s.Allowed(token, what, bucket, object) {
		IAMRefusal(http.StatusForbidden, "PERMISSION_DENIED", Account+" does not have storage.objects."+what+" access to the Google Cloud Storage object.")(w, r)
		return
	}
	if one {
		s.mu.Lock()
		content, there := s.objects[bucket+"/"+object]
		s.mu.Unlock()
		if !there || r.URL.Query().Get("alt") != "media" {
			IAMRefusal(http.StatusNotFound, "NOT_FOUND", "No such object: "+bucket+"/"+object)(w, r)
			return
		}
		_, _ = io.WriteString(w, content)
		return
	}
	items := []map[string]string{}
	s.mu.Lock()
	for at := range s.objects {
		if name, ok := strings.CutPrefix(at, bucket+"/"); ok && strings.HasPrefix(name, object) {
			items = append(items, map[string]string{"kind": "storage#object", "bucket": bucket, "name": name})
		}
	}
	s.mu.Unlock()
	answer(http.StatusOK, map[string]any{"kind": "storage#objects", "items": items})(w, r)
}

// Put puts an object into a bucket.
func (s *StandIn) Put(bucket, object, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[bucket+"/"+object] = content
}
